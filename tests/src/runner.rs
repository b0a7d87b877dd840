//! A harness for tests that cannot run under libtest (the lab forks, which needs a process with one thread; and they share the
//! machine's cores): one after the other, told as libtest tells it. Arguments that do not start with `-` filter by name.

use std::process::ExitCode;
use std::time::Instant;

/// Exit status of a failed run, as libtest's.
pub const FAILED: u8 = 101;

/// Tests by name, and what is common to them, made once some are to run.
pub fn run<T, C>(
    args: &[String],
    tests: &[(&str, T)],
    prepare: impl FnOnce() -> Result<C, String>,
    test: impl Fn(&C, &str, &T) -> Result<String, String>,
) -> ExitCode {
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<&(&str, T)> = tests
        .iter()
        .filter(|(n, _)| filters.is_empty() || filters.iter().any(|f| n.contains(f.as_str())))
        .collect();
    if args.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|(n, _)| println!("{n}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let common = match prepare() {
        Ok(common) => common,
        Err(why) => {
            println!("test prerequisites ... FAILED\n    {why}");
            return ExitCode::from(FAILED);
        }
    };
    let (start, mut failed) = (Instant::now(), 0);
    for (name, what) in &chosen {
        let began = Instant::now();
        match test(&common, name, what) {
            Ok(line) => {
                println!("test {name} ... ok ({:.1} s)", began.elapsed().as_secs_f64());
                indented(&line);
            }
            Err(why) => {
                failed += 1;
                println!("test {name} ... FAILED");
                indented(&why);
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        chosen.len() - failed,
        tests.len() - chosen.len(),
        start.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn indented(text: &str) {
    if !text.is_empty() {
        println!("    {}", text.replace('\n', "\n    "));
    }
}
