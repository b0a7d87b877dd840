//! Thousands of inputs of the fuzzer's stateful target, from seeds: what any authenticated node sends, in any order, while disks
//! hang and mesh files change, panics nowhere.
//!
//! `HOSTILE_SEEDS=FROM..TO` runs others, one of them alone as `N..N`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tests::fuzz::Settled;

/// Inputs in `make test`, and how many of them one mesh has to bear before there is a new one.
const INPUTS: u64 = 4000;
const PER_MESH: u64 = 40;

fn input(seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = vec![0; 64 + rng.next_u32() as usize % 960];
    rng.fill_bytes(&mut bytes);
    bytes
}

#[test]
fn no_node_panics_whatever_the_others_send() {
    let seeds = match std::env::var("HOSTILE_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("HOSTILE_SEEDS is FROM..TO");
            from.parse().expect("a seed")..=to.parse().expect("a seed")
        }
        Err(_) => 1..=INPUTS,
    };
    let seeds: Vec<u64> = seeds.collect();
    let began = std::time::Instant::now();
    for seeds in seeds.chunks(PER_MESH as usize) {
        let mut world = Settled::new();
        for seed in seeds {
            let done = catch_unwind(AssertUnwindSafe(|| {
                world.suffer(&input(*seed));
                world.look();
            }));
            assert!(
                done.is_ok(),
                "seed {seed}, on a mesh that has borne those from {} on: HOSTILE_SEEDS={}..{seed}",
                seeds[0],
                seeds[0]
            );
        }
    }
    println!("{} inputs in {:.1} s", seeds.len(), began.elapsed().as_secs_f64());
}
