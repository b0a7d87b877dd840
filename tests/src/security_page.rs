//! The table of `SECURITY.md` names a test in each row: it is where the page says.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").to_owned()
}

/// The files and tests of a row's last cell: what is in backticks, in turn. A test belongs to the file before it.
fn named(cell: &str) -> Vec<(String, Vec<String>)> {
    let mut files: Vec<(String, Vec<String>)> = Vec::new();
    for word in cell.split('`').skip(1).step_by(2) {
        if word.ends_with(".rs") {
            files.push((word.to_owned(), Vec::new()));
        } else {
            files
                .last_mut()
                .unwrap_or_else(|| panic!("{word}: in no file"))
                .1
                .push(word.to_owned());
        }
    }
    files
}

#[test]
fn every_row_of_the_security_page_names_tests_that_are_there() {
    let page = std::fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let rows: Vec<&str> =
        page.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| who |")).collect();
    assert!(rows.len() >= 12, "{} rows", rows.len());
    for row in rows {
        let cell = row.trim_end_matches([' ', '|']).rsplit(" | ").next().expect("a cell");
        let files = named(cell);
        assert!(!files.is_empty(), "no test: {row}");
        for (file, tests) in files {
            let below_core = !file.starts_with("tests/");
            let path = root().join(if below_core { "leaderd/core/src" } else { "" }).join(&file);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
            // Tests with a program of their own are registered by name in the file above.
            let above = path.parent().expect("a folder");
            let registered = [above.join("main.rs"), above.with_extension("rs")]
                .map(|p| std::fs::read_to_string(p).unwrap_or_default());
            for test in tests {
                let is_there = text.contains(&format!("fn {test}("))
                    || text.contains(&format!("\"{test}\""))
                    || registered.iter().any(|r| r.contains(&format!("\"{test}\"")));
                assert!(is_there, "{file} has no test {test}");
            }
        }
    }
}
