//! Charts of times: a group of dots for each row, a dot for each series in it.

use plotters::prelude::*;

use super::{
    AXIS_COLOUR, Axis, Canvas, FONT, GRID, LEGEND_STEP, REMARK, Result, TITLE_HEIGHT, colour,
    label, svg,
};

const WIDTH: u32 = 860;
const LEGEND: u32 = 200;
const X_LABELS: u32 = 44;
/// Between two dots of a group, and between two groups. Pixels.
const STEP: f64 = 12.0;
const GAP: f64 = 16.0;

/// A time in milliseconds, and the longest of the sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dot {
    Ended {
        middle: f64,
        most: f64,
    },
    /// It lasted longer than this, which is how long it was watched.
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
    /// Ends of the axis: exponents of ten, of milliseconds.
    pub decades: (i32, i32),
}

impl Dots {
    pub fn svg(&self) -> String {
        let height = TITLE_HEIGHT + X_LABELS + (self.group() * self.rows.len() as f64) as u32 + 10;
        svg(&self.title, (WIDTH, height), LEGEND, |chart, legend| {
            self.plot(chart)?;
            self.legend(legend)
        })
    }

    /// Height of a row.
    fn group(&self) -> f64 {
        STEP * self.series.len() as f64 + GAP
    }

    fn plot(&self, area: &Canvas<'_>) -> Result {
        let group = self.group();
        let (low, high) = (f64::from(self.decades.0), f64::from(self.decades.1));
        // Downwards from zero, in pixels.
        let bottom = -group * self.rows.len() as f64;
        let middles = (0..self.rows.len()).map(|r| -group * (r as f64 + 0.5)).collect();
        let name = |y: &f64| {
            let row = (-y / group).floor() as usize;
            self.rows.get(row).map(|(name, _)| name.clone()).unwrap_or_default()
        };
        let mut chart = ChartBuilder::on(area)
            .margin_bottom(10)
            .margin_right(10)
            .x_label_area_size(X_LABELS)
            .y_label_area_size(140)
            .build_cartesian_2d(
                Axis::of_decades(self.decades),
                Axis { ends: bottom..0.0, labels: middles },
            )?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(AXIS_COLOUR)
            .label_style(("sans-serif", FONT))
            .x_desc(&self.x)
            .x_label_formatter(&|e| span(10f64.powi(e.round() as i32)))
            .y_label_formatter(&name)
            .draw()?;
        let x = |ms: f64| ms.log10().clamp(low, high);
        for (r, (_, dots)) in self.rows.iter().enumerate() {
            let top = -group * r as f64;
            let border = vec![(low, top - group), (high, top - group)];
            chart.draw_series([PathElement::new(border, GRID)])?;
            for (n, dot) in dots.iter().enumerate() {
                let y = top - GAP / 2.0 - STEP * (n as f64 + 0.5);
                let line = colour(n).stroke_width(2);
                match *dot {
                    Dot::Absent => {}
                    Dot::Ended { middle, most } => {
                        let range = vec![(x(middle), y), (x(most), y)];
                        chart.draw_series([PathElement::new(range, line)])?;
                        chart.draw_series([Circle::new((x(middle), y), 4, colour(n).filled())])?;
                    }
                    Dot::NotEnded { watched } => {
                        let arrow = EmptyElement::at((x(watched), y))
                            + PathElement::new(vec![(0, -4), (8, 0), (0, 4), (0, -4)], line);
                        chart.draw_series([arrow])?;
                    }
                }
            }
        }
        Ok(())
    }

    fn legend(&self, area: &Canvas<'_>) -> Result {
        let at = |n: usize| 14 + LEGEND_STEP * n as i32;
        for (n, name) in self.series.iter().enumerate() {
            area.draw(&Circle::new((14, at(n)), 4, colour(n).filled()))?;
            label(area, (26, at(n)), name, BLACK)?;
        }
        let below = self.series.len() + 1;
        label(area, (10, at(below)), "dot: median, line: longest", REMARK)?;
        label(area, (10, at(below + 1)), "arrow: not ended by then", REMARK)
    }
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
            decades: (1, 5),
        };
        let svg = chart.svg();
        let lines: Vec<&str> = svg.lines().map(str::trim).collect();
        for text in ["a &lt; b", "10 ms", "100 s", "row", "three"] {
            assert!(lines.contains(&text), "{text}: {svg}");
        }
        // One in the row, and three in the legend.
        assert_eq!(svg.matches("<circle").count(), 4);
        // The line of the dot goes from one end of the axis to the other.
        let y = TITLE_HEIGHT as f64 + GAP / 2.0 + STEP / 2.0;
        let ends = format!("points=\"140,{y} {},{y} \"", WIDTH - LEGEND - 10 - 1);
        assert!(svg.contains(&ends), "{ends}: {svg}");
        // An arrow has three corners, and is closed.
        let corners =
            |line: &str| line.split_once("points=\"").map(|(_, p)| p.matches(',').count());
        assert_eq!(svg.lines().filter(|l| corners(l) == Some(4)).count(), 1, "{svg}");
    }
}
