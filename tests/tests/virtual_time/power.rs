//! The power goes after any of the writes of a node that comes with an empty disk; what it finds then lets it vote.

use super::*;

#[test]
fn a_new_voter_that_loses_power_after_any_write_votes_in_the_next_failover() {
    for before in 0.. {
        let sites = [Site::new("cloud", 3, 0), Site::new("home", 1, 0)];
        let mut play = Play::of(&sites, Policy::default(), WorldConfig::default());
        play.fault("cloud-2", Fault::DiskLoss, true);
        play.run(secs(2));
        play.fault("cloud-2", Fault::PowerCut(before), true);
        play.fault("cloud-2", Fault::DiskLoss, false);
        play.run(secs(10));
        if !play.world.faults[&name("cloud-2")].crashed {
            assert!(before >= 4, "it wrote {before} times: {}", play.story());
            return;
        }
        play.fault("cloud-2", Fault::PowerCut(before), false);
        play.run(secs(20));
        // Only with its vote is there a majority.
        play.fault("cloud-0", Fault::NodeCrash, true);
        play.run(secs(15));
        assert_ne!(play.leader_of("cloud"), "cloud-0", "after {before} writes: {}", play.story());
        play.fine();
    }
}
