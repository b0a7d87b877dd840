//! Kilo, or its stand-in, in the lab against the real kube-apiserver and etcd, alone and with leaderd beside it (`make test-kilo`).
//!
//! One test after the other, each in a cluster of its own: they share the machine's cores. Not under libtest, since the lab forks, which
//! needs a process with one thread. Arguments that do not start with `-` filter by name. What is missing is a failure, never a skip.
//! `$KILO_KG` names the real Kilo agent, for whoever has it; without it the stand-in plays. `--meter-every=5ms` makes the meters slower, `--moves=6` moves the stand-in alone so often. `$LEADERD_WIREGUARD` (`kernel`,
//! `wireguard-go`) says who does WireGuard, the stand-in's and leaderd's. Logs of etcd, the API server and the daemons are kept in `TARGET/kilo/logs`.

#[path = "kilo/addresses.rs"]
mod addresses;
#[path = "kilo/agent.rs"]
mod agent;
#[path = "kilo/alone.rs"]
mod alone;
#[path = "kilo/api.rs"]
mod api;
#[path = "kilo/beside.rs"]
mod beside;
#[path = "kilo/chart.rs"]
mod chart;
#[path = "kilo/nodes.rs"]
mod nodes;
#[path = "kilo/observe.rs"]
mod observe;
#[path = "kilo/race.rs"]
mod race;
#[path = "kilo/trust.rs"]
mod trust;

use std::process::ExitCode;

use ::tests::kilo::programs::Programs;
use ::tests::kilo::rig::{Beside, Options, Rig, in_lab};

type Test = (&'static str, (Beside, fn(&mut Rig) -> anyhow::Result<String>));

const TESTS: &[Test] = &[
    ("kilo_alone_does_not_see_new_flows_die", (Beside::Nobody, alone::new_flows_die)),
    (
        "kilo_alone_moves_where_it_is_told_to_and_loses_packets",
        (Beside::Nobody, alone::a_planned_move),
    ),
    (
        "kilo_cuts_a_location_off_when_who_has_no_public_endpoint_is_annotated",
        (Beside::Nobody, alone::a_private_leader),
    ),
    ("kilo_forwards_while_the_api_server_is_away", (Beside::Nobody, alone::the_api_server_is_away)),
    ("bad_pools_are_rejected", (Beside::Chart, chart::bad_pools_are_rejected)),
    (
        "leaderd_may_do_no_more_than_it_needs",
        (Beside::Chart, chart::rights_are_no_more_than_needed),
    ),
    ("keys_of_a_node_are_its_own", (Beside::Chart, trust::keys_of_a_node_are_its_own)),
    (
        "a_node_with_nonsense_is_held_and_keys_are_pinned",
        (Beside::Leaderd, trust::a_node_with_nonsense_is_held_and_keys_are_pinned),
    ),
    ("with_leaderd_new_flows_end", (Beside::Leaderd, beside::new_flows_end)),
    ("planned_promotion_loses_nothing", (Beside::Leaderd, beside::a_planned_promotion)),
    ("probe_addresses_are_published", (Beside::Leaderd, addresses::are_published)),
    ("api_server_away_during_the_fault", (Beside::Leaderd, beside::the_api_server_is_away)),
    ("a_person_annotates_a_node", (Beside::Leaderd, beside::a_person_annotates_a_node)),
    ("pool_edited_during_failover", (Beside::Leaderd, beside::a_pool_edited_during_failover)),
    ("kilos_agent_is_killed_and_returns", (Beside::Leaderd, agent::kilos_agent_is_killed)),
    ("kilos_agent_cleans_up_and_returns", (Beside::Leaderd, agent::kilos_agent_cleans_up)),
    (
        "a_crashed_leader_returns_and_does_not_lead",
        (Beside::Leaderd, agent::a_crashed_leader_returns),
    ),
    (
        "api_server_away_for_so_long_that_kilo_flaps",
        (Beside::Leaderd, agent::the_api_server_is_away_for_long),
    ),
    ("observed_then_steered_and_observed_again", (Beside::Watching, observe::observed_and_back)),
    ("no_tunnel_gets_through", (Beside::Leaderd, observe::no_tunnel_gets_through)),
    ("people_use_kubectl", (Beside::Leaderd, api::people_use_kubectl)),
    ("writes_are_leaderds_own", (Beside::Leaderd, api::writes_are_leaderds_own)),
    ("members_look_at_their_own_node", (Beside::Leaderd, api::members_look_at_their_own_node)),
    (
        "a_throttled_account_waits_and_recovers",
        (Beside::Leaderd, api::a_throttled_account_waits_and_recovers),
    ),
    (
        "an_older_epoch_never_undoes_a_newer_one",
        (Beside::Leaderd, race::an_older_epoch_never_undoes_a_newer_one),
    ),
    ("a_leaders_node_is_deleted", (Beside::Leaderd, nodes::a_leaders_node_is_deleted)),
    (
        "what_is_behind_no_node_is_reached",
        (Beside::Leaderd, nodes::what_is_behind_no_node_is_reached),
    ),
    ("a_cnis_objects_say_the_prefixes", (Beside::Leaderd, nodes::a_cnis_objects_say_the_prefixes)),
];

/// Several of these in one cluster each, for a machine on which a cluster takes minutes to come up (`--together`).
const TOGETHER: &[Test] = &[
    ("kilo_alone_under_a_fault_and_moved", (Beside::Nobody, alone_under_a_fault_and_moved)),
    ("with_leaderd_promoted_and_under_a_fault", (Beside::Leaderd, promoted_and_under_a_fault)),
];

fn alone_under_a_fault_and_moved(rig: &mut Rig) -> anyhow::Result<String> {
    let fault = alone::new_flows_die(rig)?;
    Ok(format!("issue #489: {fault}\nmoved:\n{}", alone::a_planned_move(rig)?))
}

fn promoted_and_under_a_fault(rig: &mut Rig) -> anyhow::Result<String> {
    let promoted = beside::a_planned_promotion(rig)?;
    Ok(format!("promoted: {promoted}\nissue #489: {}", beside::new_flows_end(rig)?))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tests = if args.iter().any(|a| a == "--together") { TOGETHER } else { TESTS };
    let common = || {
        let options = Options::of(&args)?;
        Ok((Programs::find()?, options))
    };
    let common = || common().map_err(|e: anyhow::Error| format!("{e:#}"));
    ::tests::runner::run(&args, tests, common, |(programs, options), name, (beside, test)| {
        let logs = programs.kilo.with_file_name("logs").join(name);
        in_lab(name, *beside, programs, *options, &logs, *test).map_err(|e| format!("{e:#}"))
    })
}
