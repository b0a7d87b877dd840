//! What a candidate relays is not tracked where a CNI is: its source NAT would hide from the other side who sent it.

use ipnet::IpNet;
use wgctl_plan::{Prefixes, Shared, Transit};

use super::Build;

impl Build<'_> {
    /// Inner addresses are on both sides of a relay. What is only observed is left as it is.
    pub(super) fn transit(&mut self) {
        let tracked =
            self.mesh().locations.get(&self.me.location).is_none_or(|l| l.tracks_transit());
        if self.me.slot.is_none() || tracked {
            return;
        }
        let inner = &self.mesh().inner;
        let inner = || std::iter::once(IpNet::from(inner.v4)).chain(inner.v6.map(IpNet::from));
        let near = self.sites[&self.me.location].prefixes.iter().copied();
        let far = self
            .routed_locations()
            .into_iter()
            .flat_map(|l| self.sites[l].prefixes.iter().copied());
        let transit = Transit {
            own: self.me.prefixes.iter().copied().collect(),
            near: near.chain(inner()).collect::<Prefixes>(),
            far: far.chain(inner()).collect::<Prefixes>(),
        };
        self.net.untracked = Shared::new(Some(transit));
    }
}
