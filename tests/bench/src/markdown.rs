//! Markdown tables, and putting them into a file between markers so that the text around them stays.

use std::path::Path;

use anyhow::{Context, Result};

/// Around what `make BENCH` writes of one part.
fn markers(bench: &str, part: &str) -> (String, String) {
    (
        format!("<!-- {bench} {part}: written by `make {bench}` -->"),
        format!("<!-- {bench} {part}: end -->"),
    )
}

pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let rule: Vec<String> = head.iter().map(|_| "---".to_owned()).collect();
    let mut text = line(&head) + &line(&rule);
    rows.iter().for_each(|row| text += &line(row));
    text
}

/// A positive number in few characters: `0.03`, `470`, `2e8`, `3e-14`.
pub fn short(n: f64) -> String {
    match n {
        n if !n.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        n if !(1e-3..1e5).contains(&n) => format!("{n:.0e}"),
        n if n < 1.0 => format!("{n:.2}"),
        n if n < 10.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// What stands between a part's markers becomes this.
pub fn between_markers(text: &str, bench: &str, part: &str, new: &str) -> Result<String> {
    let (begin, end) = markers(bench, part);
    let (before, rest) = text.split_once(&begin).context("no begin marker")?;
    let (_, after) = rest.split_once(&end).context("no end marker")?;
    Ok(format!("{before}{begin}\n\n{}\n\n{end}{after}", new.trim()))
}

pub fn write_between_markers(file: &Path, bench: &str, part: &str, new: &str) -> Result<()> {
    let what = || format!("{}, part {part}", file.display());
    let text = std::fs::read_to_string(file).with_context(what)?;
    std::fs::write(file, between_markers(&text, bench, part, new).with_context(what)?)
        .with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_around_the_markers_stays() {
        let (begin, end) = markers("bench-sim", "scale");
        let old = format!("above\n{begin}\nold\n{end}\nbelow\n");
        let rows = [vec!["1".to_owned(), "2".to_owned()]];
        let new = between_markers(&old, "bench-sim", "scale", &table(&["a", "b"], &rows)).unwrap();
        assert!(new.starts_with("above\n") && new.ends_with("\nbelow\n"), "{new}");
        assert!(new.contains("| a | b |\n| --- | --- |\n| 1 | 2 |\n") && !new.contains("old"));
        let again = |text: &str| between_markers(text, "bench-sim", "scale", "x").unwrap();
        assert_eq!(again(&new), again(&old));
        assert!(between_markers(&old, "bench-sim", "election", "x").is_err());
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 3.2e-14, 0.034, 4.26, 470.4, 2.1e8, f64::NAN].map(short);
        assert_eq!(all, ["0", "3e-14", "0.03", "4.3", "470", "2e8", "–"]);
    }
}
