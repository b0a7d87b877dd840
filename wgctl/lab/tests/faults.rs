//! The lab's faults, WAN and meters on real packets, without leaderd. Not under libtest: the lab forks, which needs a
//! process with one thread.

fn main() {
    println!("\nrunning 1 test");
    match wgctl_lab::proof::prove_faults() {
        Ok(proofs) => {
            for p in &proofs {
                println!(
                    "  {:<22} lost during: {:>5.1}% of new flows, {:>5.1}% of the old one; after: {:.1}%, {:.1}%; blackout {:.0} ms",
                    p.fault,
                    p.during.new_flows * 100.0,
                    p.during.established * 100.0,
                    p.after.new_flows * 100.0,
                    p.after.established * 100.0,
                    p.blackout_ms
                );
            }
            println!("test every_fault_breaks_what_it_says_and_its_undo_mends_it ... ok");
            println!(
                "\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n"
            );
        }
        Err(e) => {
            println!(
                "test every_fault_breaks_what_it_says_and_its_undo_mends_it ... FAILED\n\n{e:#}"
            );
            println!(
                "\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n"
            );
            std::process::exit(101);
        }
    }
}
