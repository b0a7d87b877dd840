//! Line charts as SVG, axes logarithmic: no more than the figures here need.

use std::fmt::Write as _;

const WIDTH: f64 = 780.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart by the colour-blind as well (Okabe and Ito).
pub const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// A named line through these points; both coordinates above zero.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub dashed: bool,
}

#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub x: String,
    pub y: String,
    pub lines: Vec<Line>,
}

impl Chart {
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|l| l.points.iter().copied());
        let (x0, x1) = decades(points().map(|p| p.0));
        let (y0, y1) = decades(points().map(|p| p.1));
        let px = |x: f64| LEFT + (x.log10() - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| HEIGHT - BOTTOM - (y.log10() - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
        let mut s = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
        );
        let text = |s: &mut String, x: f64, y: f64, anchor: &str, more: &str, what: &str| {
            let what = what.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(
                s,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{more}>{what}</text>"
            );
        };
        text(&mut s, LEFT, 22.0, "start", " font-size=\"14\" font-weight=\"bold\"", &self.title);
        text(&mut s, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0, "middle", "", &self.x);
        let turn = format!(" transform=\"rotate(-90 16 {0})\"", HEIGHT / 2.0);
        text(&mut s, 16.0, HEIGHT / 2.0, "middle", &turn, &self.y);
        let grid = |s: &mut String, a: (f64, f64), b: (f64, f64)| {
            let _ = writeln!(
                s,
                "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#dddddd\"/>",
                a.0, a.1, b.0, b.1
            );
        };
        let skip = |from: f64, to: f64| (((to - from) / 8.0).ceil() as i32).max(1);
        for e in (x0 as i32..=x1 as i32).step_by(skip(x0, x1) as usize) {
            let x = px(10f64.powi(e));
            grid(&mut s, (x, TOP), (x, HEIGHT - BOTTOM));
            text(&mut s, x, HEIGHT - BOTTOM + 16.0, "middle", "", &power(e));
        }
        for e in (y0 as i32..=y1 as i32).step_by(skip(y0, y1) as usize) {
            let y = py(10f64.powi(e));
            grid(&mut s, (LEFT, y), (WIDTH - RIGHT, y));
            text(&mut s, LEFT - 6.0, y + 4.0, "end", "", &power(e));
        }
        for (i, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let dash = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
            let path: Vec<String> =
                line.points.iter().map(|(x, y)| format!("{:.1} {:.1}", px(*x), py(*y))).collect();
            let _ = writeln!(
                s,
                "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
                path.join("L")
            );
            for (x, y) in &line.points {
                let _ = writeln!(
                    s,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                    px(*x),
                    py(*y)
                );
            }
            let y = TOP + 14.0 + 20.0 * i as f64;
            let x = WIDTH - RIGHT + 14.0;
            let _ = writeln!(
                s,
                "<path d=\"M{x} {y}h22\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>"
            );
            text(&mut s, x + 28.0, y + 4.0, "start", "", &line.name);
        }
        s.push_str("</svg>\n");
        s
    }
}

/// The whole decades around all values, as exponents of ten.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let logs = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10);
    let (lo, hi) = logs.fold((f64::MAX, f64::MIN), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo > hi {
        return (0.0, 1.0);
    }
    let (lo, hi) = (lo.floor(), hi.ceil());
    if lo == hi { (lo, hi + 1.0) } else { (lo, hi) }
}

fn power(e: i32) -> String {
    match e {
        -3..=5 => format!("{}", 10f64.powi(e)),
        _ => format!("1e{e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_points_and_names_are_escaped() {
        let line =
            Line { name: "a < b".into(), points: vec![(0.2, 3.0), (90.0, 700.0)], dashed: false };
        let chart = Chart { title: "t".into(), x: "x".into(), y: "y".into(), lines: vec![line] };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        for label in [">0.1<", ">100<", ">1<", ">1000<"] {
            assert!(svg.contains(label), "{label}: {svg}");
        }
        assert_eq!(decades([0.2, 90.0].into_iter()), (-1.0, 2.0));
    }
}
