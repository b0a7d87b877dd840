//! Transit that stays out of connection tracking where there is a CNI: its masquerade would hide the sender from the far end.

use ipnet::IpNet;
use wgctl_plan::{Prefixes, Shared, Transit};

use super::{Build, host};

impl Build<'_> {
    /// Leaves untracked what a candidate relays. What a node and its workload send to other locations keeps its source, on every node: a
    /// masquerade would give it the address of the device that it leaves by, which no far tunnel admits.
    ///
    /// Inner addresses are on both sides of a relay. Traffic that is only observed is not touched.
    pub(super) fn transit(&mut self) {
        let tracked =
            self.mesh().locations.get(&self.me.location).is_none_or(|l| l.tracks_transit());
        if tracked {
            return;
        }
        let inner = &self.mesh().inner;
        let inner = || std::iter::once(IpNet::from(inner.v4)).chain(inner.v6.map(IpNet::from));
        let near = self.locations[&self.me.location].prefixes.iter().copied().chain(inner());
        let far = self.routed_locations();
        let far = far.into_iter().flat_map(|l| self.locations[l].prefixes.iter().copied());
        let carried = self.mesh().carried_address(self.me).map(host);
        let transit = Transit {
            own: self.me.prefixes.iter().copied().chain(carried).collect(),
            // A member relays nothing.
            near: near.filter(|_| self.me.slot.is_some()).collect::<Prefixes>(),
            far: far.chain(inner()).collect::<Prefixes>(),
        };
        self.net.untracked = Shared::new(Some(transit));
    }
}
