//! The pictures of the docs, as SVG. Axes are logarithmic: coordinates are exponents of ten.

mod dots;
mod lines;

pub use dots::{Dot, Dots};
pub use lines::{Chart, Line};

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Colours that colour-blind people can tell apart too (Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x99, 0x99, 0x99),
];
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const AXIS_COLOUR: RGBColor = RGBColor(0x99, 0x99, 0x99);
const REMARK: RGBColor = RGBColor(0x66, 0x66, 0x66);
/// Pixels. plotters-svg divides it by 1.24.
const FONT: f64 = 15.0;
const TITLE_FONT: f64 = 18.0;
const TITLE_HEIGHT: u32 = 36;
/// Between two entries of a legend, pixels.
const LEGEND_STEP: i32 = 20;

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Result = std::result::Result<(), Box<dyn std::error::Error>>;

fn colour(series: usize) -> RGBColor {
    COLOURS[series % COLOURS.len()]
}

/// An axis with labels at chosen places.
struct Axis {
    ends: Range<f64>,
    labels: Vec<f64>,
}

impl Axis {
    /// An axis over these decades, with a label at each, or at fewer if there are more than eight.
    fn of_decades((low, high): (i32, i32)) -> Self {
        let step = ((high - low) as usize).div_ceil(8).max(1);
        let labels = (low..=high).step_by(step).map(f64::from).collect();
        Self { ends: low.into()..high.into(), labels }
    }
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.ends.start) / (self.ends.end - self.ends.start);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<H: KeyPointHint>(&self, _: H) -> Vec<f64> {
        self.labels.clone()
    }

    fn range(&self) -> Range<f64> {
        self.ends.clone()
    }
}

/// Draws a white picture with a title, of this width and height in pixels. `draw` has the part below the title, and to the right
/// of it one for the legend.
fn svg(
    title: &str,
    size: (u32, u32),
    legend: u32,
    draw: impl FnOnce(&Canvas<'_>, &Canvas<'_>) -> Result,
) -> String {
    let mut text = String::new();
    let picture = || {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (top, below) = root.split_vertically(TITLE_HEIGHT);
        let bold = ("sans-serif", TITLE_FONT).into_font().style(FontStyle::Bold);
        top.draw(&Text::new(title, (10, 10), bold))?;
        let (chart, right) = below.split_horizontally(size.0 - legend);
        draw(&chart, &right)?;
        root.present().map_err(Into::into)
    };
    let drawn: Result = picture();
    drawn.expect("memory takes every picture");
    text
}

/// Writes a line of a legend, its middle at `at`.
fn label(area: &Canvas<'_>, at: (i32, i32), text: &str, colour: RGBColor) -> Result {
    let style = ("sans-serif", FONT).into_text_style(area).color(&colour);
    let style = style.pos(Pos::new(HPos::Left, VPos::Center));
    Ok(area.draw(&Text::new(text, at, style))?)
}

/// The whole decades around all values, as exponents of ten: one at least.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let logs = values.filter(|v| *v > 0.0 && v.is_finite()).map(f64::log10);
    let ends = logs.fold(None, |ends: Option<(f64, f64)>, v| {
        let (low, high) = ends.unwrap_or((v, v));
        Some((low.min(v), high.max(v)))
    });
    let (low, high) = ends.map_or((0, 0), |(low, high)| (low.floor() as i32, high.ceil() as i32));
    (low, high.max(low + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_spans_whole_decades_around_its_values() {
        assert_eq!(decades([0.2, 90.0].into_iter()), (-1, 2));
        assert_eq!(decades([10.0].into_iter()), (1, 2));
        assert_eq!(decades([f64::NAN, 0.0].into_iter()), (0, 1));
        assert_eq!(Axis::of_decades((-1, 2)).labels, [-1.0, 0.0, 1.0, 2.0]);
        assert_eq!(Axis::of_decades((-30, 10)).labels.len(), 9);
    }
}
