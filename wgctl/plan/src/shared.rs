//! A value that copies share until one of them is changed.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that its copies share until one of them is changed; that one then gets a value of its own.
///
/// To copy it costs the same whatever its size, and so does comparing two copies that were not changed: the same allocation is
/// equal. Otherwise the contents are compared. The serialised form is that of the value.
#[derive(Default)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// True if both are the same allocation, and so equal. `false` says nothing about equality.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns the value, copied if it is shared.
    pub fn into_inner(self) -> T
    where
        T: Clone,
    {
        Arc::unwrap_or_clone(self.0)
    }

    /// If both are equal, takes the other's allocation.
    pub fn share(&mut self, other: &Self)
    where
        T: Eq,
    {
        if self == other {
            self.0 = other.0.clone();
        }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// The first change of a shared value copies it.
impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

/// Only for values that equal themselves (`Eq`): the same allocation is not looked into.
impl<T: Eq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || *self.0 == *other.0
    }
}
impl<T: Eq> Eq for Shared<T> {}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: From<[X; N]>, X, const N: usize> From<[X; N]> for Shared<T> {
    fn from(items: [X; N]) -> Self {
        Self::new(items.into())
    }
}
impl<T: FromIterator<X>, X> FromIterator<X> for Shared<T> {
    fn from_iter<I: IntoIterator<Item = X>>(items: I) -> Self {
        Self::new(items.into_iter().collect())
    }
}
impl<'a, T> IntoIterator for &'a Shared<T>
where
    &'a T: IntoIterator,
{
    type Item = <&'a T as IntoIterator>::Item;
    type IntoIter = <&'a T as IntoIterator>::IntoIter;
    fn into_iter(self) -> Self::IntoIter {
        (&*self.0).into_iter()
    }
}
impl<'a, T: Clone> IntoIterator for &'a mut Shared<T>
where
    &'a mut T: IntoIterator,
{
    type Item = <&'a mut T as IntoIterator>::Item;
    type IntoIter = <&'a mut T as IntoIterator>::IntoIter;
    fn into_iter(self) -> Self::IntoIter {
        (&mut **self).into_iter()
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::deserialize(from).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_copy_shares_until_it_is_changed_and_the_original_stays_as_it_was() {
        let original: Shared<BTreeMap<u8, u8>> = [(1, 1), (2, 2)].into();
        let mut copy = original.clone();
        assert!(copy.is_same(&original) && copy == original);
        copy.insert(2, 3);
        assert!(!copy.is_same(&original) && copy != original);
        assert_eq!((original[&2], copy[&2]), (2, 3));
    }

    #[test]
    fn equal_values_that_are_not_shared_are_equal_and_can_be_made_one() {
        let one: Shared<BTreeMap<u8, u8>> = [(1, 1)].into();
        let mut two: Shared<BTreeMap<u8, u8>> = [(1, 1)].into();
        assert!(!two.is_same(&one) && two == one);
        two.share(&one);
        assert!(two.is_same(&one));
        two.insert(1, 2);
        two.share(&one);
        assert_eq!((one[&1], two[&1]), (1, 2), "what differs stays");
    }
}
