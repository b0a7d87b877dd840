//! Rules and routes of other programs that come before ours: what the kernel says of it.
//!
//! A candidate that would not relay to a location calls its tunnels there bad, as long as another candidate of its location has a good one:
//! then the relay pair goes around it, and its location moves. It asks to be avoided in any case, by which others in the same trouble know
//! that it is no way out. What a node sends itself is for people to mend.

use crate::ids::LocationName;
use crate::io::{Effect, LogLevel, OverriddenRoute, RouteCheck};
use crate::time::Now;

use super::Node;

/// Notes of this many routes.
const MAX_NOTES: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Overridden {
    /// Of the last `Effect::CheckRoutes`.
    checks: Vec<RouteCheck>,
    routes: Vec<OverriddenRoute>,
}

impl Overridden {
    /// Why this node would not relay all that it should with a location.
    pub(super) fn transit_with(&self, location: &LocationName) -> Option<&OverriddenRoute> {
        let mut transit = self.routes.iter().filter(|r| r.check.iif.is_some());
        transit.find(|r| r.check.location == *location)
    }

    /// For the status.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.routes.iter().take(MAX_NOTES).map(describe).collect();
        if self.routes.len() > MAX_NOTES {
            notes.push(format!(
                "and {} more such packets go another way",
                self.routes.len() - MAX_NOTES
            ));
        }
        notes
    }
}

/// Returns a sentence that names the packet and where it goes.
pub(super) fn describe(route: &OverriddenRoute) -> String {
    let RouteCheck { source, target, iif, .. } = &route.check;
    let from = iif.as_ref().map(|iif| format!(", in by {iif},")).unwrap_or_default();
    format!(
        "another program's rule, route or setting comes before ours: a packet from {source}{from} to {target} does not go by our route: {}",
        route.found
    )
}

impl Node {
    pub(super) fn check_routes(&mut self, checks: Vec<RouteCheck>) {
        if self.overridden.checks != checks {
            self.overridden.checks.clone_from(&checks);
            self.effects.push_back(Effect::CheckRoutes { checks });
        }
    }

    pub(super) fn routes_overridden(&mut self, now: Now, routes: Vec<OverriddenRoute>) {
        let before = std::mem::take(&mut self.overridden.routes);
        for route in routes.iter().filter(|r| !before.contains(r)).take(MAX_NOTES) {
            let fields = [("location.name", route.check.location.to_string())];
            self.log(LogLevel::Warn, &describe(route), fields);
        }
        if routes.is_empty() && !before.is_empty() {
            self.log(LogLevel::Info, "nothing comes before our routes any more", []);
        }
        self.overridden.routes = routes;
        self.review_relays(now, self.other_locations());
    }
}
