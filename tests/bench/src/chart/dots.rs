//! A chart of times on a logarithmic axis: a group of dots for each row, a dot for each series in it.

use std::fmt::Write as _;

use super::COLOURS;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
/// Between two dots of a group, and between two groups.
const STEP: f64 = 12.0;
const GAP: f64 = 16.0;

/// A time in milliseconds, and the longest of the sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dot {
    Ended {
        middle: f64,
        most: f64,
    },
    /// It lasted longer than was watched: this long.
    NotEnded {
        watched: f64,
    },
    Absent,
}

#[derive(Clone, Debug)]
pub struct Dots {
    pub title: String,
    pub x: String,
    pub series: Vec<String>,
    /// Name, and a dot for each series.
    pub rows: Vec<(String, Vec<Dot>)>,
    /// Ends of the axis, milliseconds: powers of ten.
    pub from: f64,
    pub to: f64,
}

impl Dots {
    pub fn svg(&self) -> String {
        let group = STEP * self.series.len() as f64 + GAP;
        let height = TOP + BOTTOM + group * self.rows.len() as f64;
        let (x0, x1) = (self.from.log10(), self.to.log10());
        let px = |ms: f64| {
            let share = (ms.clamp(self.from, self.to).log10() - x0) / (x1 - x0);
            LEFT + share * (WIDTH - LEFT - RIGHT)
        };
        let mut s = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        text(&mut s, 10.0, 22.0, "start", " font-size=\"14\" font-weight=\"bold\"", &self.title);
        text(&mut s, (LEFT + WIDTH - RIGHT) / 2.0, height - 12.0, "middle", "", &self.x);
        for e in x0.round() as i32..=x1.round() as i32 {
            let x = px(10f64.powi(e));
            let _ = writeln!(
                s,
                "<path d=\"M{x:.1} {TOP}V{:.1}\" stroke=\"#dddddd\"/>",
                height - BOTTOM
            );
            text(&mut s, x, height - BOTTOM + 16.0, "middle", "", &span(10f64.powi(e)));
        }
        for (r, (name, dots)) in self.rows.iter().enumerate() {
            let top = TOP + group * r as f64;
            let middle = top + group / 2.0 + 4.0;
            text(&mut s, LEFT - 10.0, middle, "end", "", name);
            let _ = writeln!(
                s,
                "<path d=\"M{LEFT} {:.1}H{:.1}\" stroke=\"#eeeeee\"/>",
                top + group,
                WIDTH - RIGHT
            );
            for (i, dot) in dots.iter().enumerate() {
                let y = top + GAP / 2.0 + STEP * (i as f64 + 0.5);
                draw(&mut s, *dot, y, COLOURS[i % COLOURS.len()], &px);
            }
        }
        for (i, name) in self.series.iter().enumerate() {
            let (x, y) = (WIDTH - RIGHT + 40.0, TOP + 14.0 + 20.0 * i as f64);
            let colour = COLOURS[i % COLOURS.len()];
            let _ = writeln!(s, "<circle cx=\"{x}\" cy=\"{y}\" r=\"4\" fill=\"{colour}\"/>");
            text(&mut s, x + 12.0, y + 4.0, "start", "", name);
        }
        let y = TOP + 24.0 + 20.0 * self.series.len() as f64;
        text(
            &mut s,
            WIDTH - RIGHT + 36.0,
            y,
            "start",
            " fill=\"#666666\"",
            "dot: median, line: longest",
        );
        text(
            &mut s,
            WIDTH - RIGHT + 36.0,
            y + 18.0,
            "start",
            " fill=\"#666666\"",
            "arrow: not ended so far",
        );
        s.push_str("</svg>\n");
        s
    }
}

fn draw(s: &mut String, dot: Dot, y: f64, colour: &str, px: &impl Fn(f64) -> f64) {
    match dot {
        Dot::Absent => {}
        Dot::Ended { middle, most } => {
            let (x, end) = (px(middle), px(most));
            let _ = writeln!(
                s,
                "<path d=\"M{x:.1} {y:.1}H{end:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
            );
        }
        Dot::NotEnded { watched } => {
            let x = px(watched);
            let _ = writeln!(
                s,
                "<path d=\"M{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}Z\" fill=\"#ffffff\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                y - 4.0,
                x + 8.0,
                y + 4.0
            );
        }
    }
}

fn text(s: &mut String, x: f64, y: f64, anchor: &str, more: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(s, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{more}>{what}</text>");
}

/// Milliseconds as people say them.
fn span(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms} ms") } else { format!("{} s", ms / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dot_is_within_the_axis_and_what_has_not_ended_is_an_arrow() {
        let dots = vec![
            Dot::Ended { middle: 0.0, most: 1e9 },
            Dot::NotEnded { watched: 15_000.0 },
            Dot::Absent,
        ];
        let chart = Dots {
            title: "a < b".into(),
            x: "x".into(),
            series: ["one", "two", "three"].map(str::to_owned).to_vec(),
            rows: vec![("row".into(), dots)],
            from: 10.0,
            to: 100_000.0,
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && svg.contains(">10 ms<") && svg.contains(">100 s<"));
        let ends = format!("M{LEFT:.1} {:.1}H{:.1}", TOP + GAP / 2.0 + STEP / 2.0, WIDTH - RIGHT);
        assert!(svg.contains(&ends), "{ends}: {svg}");
        assert_eq!(svg.matches("Z\" fill=\"#ffffff\"").count(), 1);
        // One in the row, and three in the legend.
        assert_eq!(svg.matches("<circle").count(), 4);
    }
}
