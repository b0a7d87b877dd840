//! Serialises maps whose keys are no strings as lists of pairs, since JSON has only string keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
    map: &BTreeMap<K, V>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(map)
}

pub fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
where
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
}

/// The same for maps that are [`Shared`](crate::Shared).
pub mod shared {
    use super::*;
    use crate::shared::Shared;

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &Shared<BTreeMap<K, V>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        super::serialize(map, to)
    }

    pub fn deserialize<'de, K, V, D>(from: D) -> Result<Shared<BTreeMap<K, V>>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        super::deserialize(from).map(Shared::new)
    }
}
