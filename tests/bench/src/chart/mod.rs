//! The pictures of the docs, as SVG.

pub mod dots;
pub mod lines;

/// Colours that colour-blind people can tell apart too (Okabe and Ito).
pub const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];
