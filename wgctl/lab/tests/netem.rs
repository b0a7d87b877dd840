//! The lab's WAN emulator agrees with `netem`. Not among the tests that `cargo test` runs by itself: few machines have the
//! module. `make test-kernel` runs it.

fn main() {
    println!("\nrunning 1 test");
    let outcome = wgctl_lab::netem::compare();
    let wrong = match &outcome {
        Ok(all) => {
            for c in all {
                println!("  {:<24} ours: {}; netem: {}", c.name, c.ours, c.netem);
            }
            all.iter().flat_map(|c| &c.wrong).cloned().collect()
        }
        Err(e) => vec![format!("{e:#}")],
    };
    let word = if wrong.is_empty() { "ok" } else { "FAILED" };
    println!("test the_emulated_wan_agrees_with_netem ... {word}");
    wrong.iter().for_each(|why| println!("    {why}"));
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out\n",
        u8::from(wrong.is_empty()),
        u8::from(!wrong.is_empty())
    );
    std::process::exit(if wrong.is_empty() { 0 } else { 101 });
}
