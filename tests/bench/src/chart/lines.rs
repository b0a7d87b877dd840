//! Line charts.

use plotters::prelude::*;

use super::{
    AXIS_COLOUR, Axis, Canvas, FONT, GRID, LEGEND_STEP, Result, colour, decades, label, svg,
};

const SIZE: (u32, u32) = (780, 420);
const LEGEND: u32 = 230;

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
        svg(&self.title, SIZE, LEGEND, |chart, legend| {
            self.plot(chart)?;
            self.legend(legend)
        })
    }

    fn plot(&self, area: &Canvas<'_>) -> Result {
        let points = || self.lines.iter().flat_map(|l| l.points.iter().copied());
        let xs = decades(points().map(|p| p.0));
        let ys = decades(points().map(|p| p.1));
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(66)
            .build_cartesian_2d(Axis::of_decades(xs), Axis::of_decades(ys))?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(AXIS_COLOUR)
            .label_style(("sans-serif", FONT))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_label_formatter(&|e| power(*e))
            .y_label_formatter(&|e| power(*e))
            .draw()?;
        for (n, line) in self.lines.iter().enumerate() {
            let points: Vec<_> = line.points.iter().map(|(x, y)| (x.log10(), y.log10())).collect();
            let style = colour(n).stroke_width(2);
            if line.dashed {
                chart.draw_series(DashedLineSeries::new(points.clone(), 5, 4, style))?;
            } else {
                chart.draw_series(LineSeries::new(points.clone(), style))?;
            }
            chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour(n).filled())))?;
        }
        Ok(())
    }

    fn legend(&self, area: &Canvas<'_>) -> Result {
        for (n, line) in self.lines.iter().enumerate() {
            let y = 24 + LEGEND_STEP * n as i32;
            let parts: &[(i32, i32)] =
                if line.dashed { &[(6, 11), (15, 20), (24, 28)] } else { &[(6, 28)] };
            for (from, to) in parts {
                let style = colour(n).stroke_width(2);
                area.draw(&PathElement::new(vec![(*from, y), (*to, y)], style))?;
            }
            area.draw(&Circle::new((17, y), 3, colour(n).filled()))?;
            label(area, (36, y), &line.name, BLACK)?;
        }
        Ok(())
    }
}

/// Ten to this power, in few characters.
fn power(exponent: f64) -> String {
    match exponent.round() as i32 {
        e @ -3..=5 => format!("{}", 10f64.powi(e)),
        e => format!("1e{e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_points_and_names_are_escaped() {
        let points = vec![(0.2, 3.0), (90.0, 700.0)];
        let line = |name: &str, dashed| Line { name: name.into(), points: points.clone(), dashed };
        let chart = Chart {
            title: "t".into(),
            x: "x".into(),
            y: "y".into(),
            lines: vec![line("a < b", false), line("dashed", true)],
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"), "{svg}");
        let lines: Vec<&str> = svg.lines().map(str::trim).collect();
        for text in ["0.1", "100", "1", "1000", "x", "y", "t"] {
            assert!(lines.contains(&text), "{text}: {svg}");
        }
        // Two points on each line, and one in each entry of the legend.
        assert_eq!(svg.matches("<circle").count(), 6);
    }
}
