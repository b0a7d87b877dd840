//! Reading lists and texts that have a most: what is longer is an error before it is in memory.
//!
//! A row of seven bytes on the wire is 64 in memory, and an empty text of one byte is 24. So a frame within its limit could still
//! become dozens of times as large; these lists stop at the element that is too many. For `#[serde(deserialize_with = …)]`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Room that is made before any element was read.
const ROOM: usize = 16;

/// At most `MOST` elements.
pub(crate) fn list<'de, D, T, const MOST: usize>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MOST: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MOST} elements")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let says = seq.size_hint().unwrap_or(0);
            let mut all = Vec::with_capacity(says.min(MOST).min(ROOM));
            while let Some(element) = seq.next_element()? {
                if all.len() >= MOST {
                    return Err(A::Error::invalid_length(says, &self));
                }
                all.push(element);
            }
            Ok(all)
        }
    }
    from.deserialize_seq(List::<T, MOST>(PhantomData))
}

/// Texts of at most [`super::limits::MAX_TEXT`] bytes, [`super::limits::MAX_TEXTS`] of them.
pub(crate) fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    use super::limits::{MAX_TEXT, MAX_TEXTS};
    let all: Vec<String> = list::<D, String, MAX_TEXTS>(from)?;
    match all.iter().any(|t| t.len() > MAX_TEXT) {
        true => Err(D::Error::custom("a text is too long")),
        false => Ok(all),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Few(#[serde(deserialize_with = "super::list::<_, _, 3>")] Vec<u8>);

    #[test]
    fn a_list_may_have_its_most_elements_and_no_more() {
        assert_eq!(postcard::from_bytes(&[3, 7, 8, 9]), Ok(Few(vec![7, 8, 9])));
        assert!(postcard::from_bytes::<Few>(&[4, 7, 8, 9, 10]).is_err());
        // Claims four billion, has none.
        assert!(postcard::from_bytes::<Few>(&[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(serde_json::from_str::<Few>("[1,2,3,4]").is_err());
    }
}
