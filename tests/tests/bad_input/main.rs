//! Bad input and live operation, with the real `leaderd` in the lab's namespaces.
//!
//! One test after the other, each in a lab of its own: they share the machine's cores. Not under libtest, which would
//! run them at once. Arguments that do not start with `-` filter by name. This program also runs *inside* the lab, as the
//! traffic and the attackers of the tests (see [`inside`]). A missing program is a failure, never a skip.

mod attacks;
mod confined;
mod half_open;
mod inside;
mod lab;
mod live;
mod starts;
mod store;
mod worst_peer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("what_is_missing_or_wrong_at_the_start_is_named", starts::what_is_missing_or_wrong_is_named),
    ("what_the_machine_lacks_is_named", starts::what_the_machine_lacks_is_named),
    ("a_busy_port_is_named", starts::a_busy_port_is_named),
    ("a_busy_wireguard_port_is_named_and_taken_once_it_is_free", starts::a_busy_wireguard_port),
    ("a_second_daemon_of_a_node_is_refused", starts::a_second_daemon_is_refused),
    (
        "a_second_machine_with_the_same_keys_does_no_harm",
        attacks::a_second_machine_with_the_same_keys,
    ),
    ("strangers_and_garbage_are_counted_and_change_nothing", attacks::strangers_and_garbage),
    (
        "a_flood_of_garbage_and_half_open_handshakes_does_not_stop_a_failover",
        attacks::a_flood_while_the_leader_fails,
    ),
    (
        "a_member_that_sends_the_worst_it_may_costs_neither_memory_nor_failover",
        worst_peer::a_member_that_sends_the_worst,
    ),
    ("the_daemon_needs_no_more_than_its_two_capabilities", confined::least_privileges),
    ("no_log_recording_or_answer_has_a_key_in_it", confined::keys_stay_in_their_files),
    ("wrong_admin_requests_are_refused_and_two_operators_get_along", attacks::admin_requests),
    ("a_full_disk_stops_neither_forwarding_nor_probing", store::a_full_disk),
    ("a_daemon_killed_at_any_moment_while_it_writes_starts_again", store::a_killed_daemon),
    ("a_damaged_store_is_refused_and_a_reset_node_rejoins", store::a_damaged_store),
    ("the_store_of_another_node_is_refused", store::a_foreign_store),
    ("a_restart_under_traffic_loses_nothing", live::a_restart_under_traffic),
    ("a_new_mesh_file_is_applied_without_loss_and_a_broken_one_is_not", live::a_new_mesh_file),
    ("a_lan_address_that_comes_late_or_moves_is_followed", live::a_late_lan_address),
    ("drift_is_repaired_and_cleanup_leaves_what_is_not_ours", live::drift_and_cleanup),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = args.first().and_then(|a| a.strip_prefix("inside:")) {
        return inside::main(role, &args[1..]);
    }
    let nothing = || Ok(());
    // What failed has said why.
    ::tests::runner::run(&args, TESTS, nothing, |(), _, test| {
        catch_unwind(AssertUnwindSafe(test)).map(|()| String::new()).map_err(|_| String::new())
    })
}
