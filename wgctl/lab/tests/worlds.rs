//! The lab's fabrics and CNIs on real packets, without leaderd. Not under libtest: the lab forks, which needs a process with one
//! thread.

fn main() {
    let all = wgctl_lab::proof::prove_worlds();
    println!("\nrunning {} tests", all.len());
    let mut failed = 0;
    for (name, outcome) in &all {
        match outcome {
            Ok(()) => println!("test {name} ... ok"),
            Err(e) => {
                failed += 1;
                println!("test {name} ... FAILED\n    {e:#}");
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n",
        all.len() - failed
    );
    std::process::exit(if failed == 0 { 0 } else { 101 });
}
