//! The search for a path's MTU, by bisection between a size that passed and one that was lost.
//!
//! It begins when a path is degraded for its MTU, and two probes of each size are tried, as one alone may be lost by chance.

/// Sizes closer together than this end the search, in bytes.
const STEP: u16 = 8;
/// Losses of a size that rule it out.
const TRIES: usize = 2;

/// What became of the probes of one size so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attempts {
    /// One is still on its way.
    pub pending: bool,
    pub lost: usize,
}

/// What is known of a path's MTU. Sizes are in bytes, headers included.
#[derive(Debug, Clone, Copy, Default)]
pub struct PathMtuSearch {
    /// The largest size known to pass.
    known: Option<u16>,
    /// During a search: the largest size that passed, and the smallest that was lost.
    between: Option<(u16, u16)>,
}

impl PathMtuSearch {
    /// The largest size known to pass.
    pub fn known(&self) -> Option<u16> {
        self.known
    }

    /// A packet of this size passed.
    pub fn on_delivered(&mut self, size: u16) {
        self.known = self.known.max(Some(size));
        if let Some((low, _)) = &mut self.between {
            *low = (*low).max(size);
        }
    }

    /// A router on the way, or our own interface, named its MTU.
    pub fn on_too_big(&mut self, mtu: u16) {
        self.known = Some(mtu);
    }

    /// Begins between the largest size that passed (0 if none did) and the smallest larger one that was lost.
    pub fn begin(&mut self, passed: u16, lost: Option<u16>) {
        self.between = lost.map(|lost| (passed, lost));
        self.known = self.known.filter(|m| *m >= passed && Some(*m) < lost).or(Some(passed));
    }

    pub fn stop(&mut self) {
        self.between = None;
    }

    /// The next size to try, twice; `None` if there is nothing to try, or not yet.
    pub fn next_size(&mut self, attempts: impl Fn(u16) -> Attempts) -> Option<u16> {
        loop {
            let (low, high) = self.between?;
            // A larger size may pass meanwhile than one that was lost by chance.
            if high.saturating_sub(low) <= STEP {
                (self.known, self.between) = (Some(low), None);
                return None;
            }
            let size = low + (high - low) / 2;
            let tried = attempts(size);
            if tried.pending {
                return None;
            }
            if tried.lost < TRIES {
                return Some(size);
            }
            self.between = Some((low, size));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches on a path that passes packets up to `mtu`. Returns the result and the sizes that were tried.
    fn search(mtu: u16) -> (Option<u16>, Vec<u16>) {
        let mut search = PathMtuSearch::default();
        search.on_delivered(150);
        search.begin(150, Some(1420));
        let mut tried = Vec::new();
        let lost = |size| Attempts { pending: false, lost: if size > mtu { 2 } else { 0 } };
        while let Some(size) = search.next_size(lost) {
            tried.push(size);
            search.on_delivered(size);
        }
        (search.known(), tried)
    }

    #[test]
    fn the_search_ends_within_a_step_of_the_mtu() {
        for mtu in [150, 576, 1280, 1392, 1419] {
            let (found, tried) = search(mtu);
            let found = found.expect("it ends");
            assert!(found <= mtu && mtu - found <= STEP, "{mtu}: {found}");
            assert!(tried.len() <= 8, "{tried:?}");
        }
    }

    #[test]
    fn a_size_that_passes_although_a_smaller_one_was_lost_ends_the_search() {
        let mut search = PathMtuSearch::default();
        search.begin(150, Some(600));
        search.on_delivered(1200);
        assert_eq!(search.next_size(|_| Attempts::default()), None);
        assert_eq!(search.known(), Some(1200));
    }

    #[test]
    fn a_size_is_ruled_out_by_two_losses_and_not_while_a_probe_is_on_its_way() {
        let mut search = PathMtuSearch::default();
        search.begin(150, Some(1420));
        let attempts = |pending, lost| {
            move |size| if size == 785 { Attempts { pending, lost } } else { Attempts::default() }
        };
        assert_eq!(search.next_size(attempts(false, 0)), Some(785));
        assert_eq!(search.next_size(attempts(true, 1)), None);
        assert_eq!(search.next_size(attempts(false, 1)), Some(785), "one loss may be chance");
        assert_eq!(search.next_size(attempts(false, 2)), Some(467));
    }

    #[test]
    fn what_was_known_holds_only_between_what_passed_and_what_was_lost() {
        let begun = |known, passed, lost| {
            let mut search = PathMtuSearch::default();
            search.on_too_big(known);
            search.begin(passed, lost);
            search.known()
        };
        assert_eq!(begun(1280, 150, Some(1420)), Some(1280), "a router named it");
        assert_eq!(begun(1420, 150, Some(1420)), Some(150), "that size is lost now");
        assert_eq!(begun(100, 150, Some(1420)), Some(150));
        assert_eq!(begun(1280, 150, None), Some(150));
    }

    #[test]
    fn a_path_that_recovers_is_searched_no_more() {
        let mut search = PathMtuSearch::default();
        search.begin(150, Some(1420));
        search.stop();
        assert_eq!(search.next_size(|_| Attempts::default()), None);
        search.on_delivered(1420);
        assert_eq!(search.known(), Some(1420));
    }
}
