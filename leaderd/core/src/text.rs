//! Text from others, on its way to a terminal, a log or a frame.

use std::borrow::Cow;

/// Returns the text with everything escaped that a terminal or a log reader takes for more than text: control characters (line ends,
/// escape sequences of either kind), and characters that change the direction of writing or are invisible.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hidden(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Returns the text, or its beginning with an ellipsis, in at most this number of characters.
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_text_is_written_out() {
        assert_eq!(printable("cloud-0 leads → now…"), "cloud-0 leads → now…");
        assert_eq!(printable("a\nb\r\x1b[2J\x07"), r"a\nb\r\u{1b}[2J\u{7}");
        // The one-character forms of escape sequences, and text that would be read backwards.
        assert_eq!(printable("\u{9b}2J\u{202e}x\u{200b}"), r"\u{9b}2J\u{202e}x\u{200b}");
    }

    #[test]
    fn a_long_text_is_cut_with_an_ellipsis() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abcd", 3), "ab…");
        assert_eq!(shortened("…………", 3), "………");
    }
}
