//! Charts of rates over time.

use std::fmt::Write as _;

use super::sim::{QUOTA_BYTES, Record, SLICES};

const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 50.0;
const GAP: f64 = 70.0;
/// The highest rate that is shown, as a multiple of the quota.
const TOP: f64 = 1.5;

/// Returns an SVG with a chart for each title: the bytes a second that were attempted and accepted.
pub(crate) fn svg(charts: &[(&str, Record)]) -> String {
    let (width, height) = (
        WIDTH + 2.0 * LEFT,
        charts.len() as f64 * (HEIGHT + GAP) + GAP,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (number, (title, record)) in charts.iter().enumerate() {
        let top = GAP + number as f64 * (HEIGHT + GAP);
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\" font-size=\"16\">{title}</text>\n<text x=\"{LEFT}\" y=\"{}\">bytes a second as \
             a multiple of the quota: <tspan fill=\"#d55e00\">attempted (highest second)</tspan>, <tspan \
             fill=\"#0072b2\">accepted (mean)</tspan></text>",
            top - 30.0,
            top - 10.0
        );
        for tick in [0.0, 0.5, 1.0, TOP] {
            let y = top + HEIGHT * (1.0 - tick / TOP);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#ccc\"/><text x=\"10\" y=\"{}\">{tick}</text>",
                LEFT + WIDTH,
                y + 4.0
            );
        }
        for (series, highest, colour) in [
            (&record.attempted, true, "#d55e00"),
            (&record.accepted, false, "#0072b2"),
        ] {
            let points = points(series, highest, top);
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" points=\"{points}\"/>"
            );
        }
        let hours = record.attempted.len() as f64 / (SLICES * 3_600) as f64;
        for hour in 0..=hours as u32 {
            let x = LEFT + WIDTH * f64::from(hour) / hours;
            let _ = writeln!(
                svg,
                "<text x=\"{x}\" y=\"{}\">{hour} h</text>",
                top + HEIGHT + 16.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Returns the points of a line: one for each pixel, the highest second in it or the mean.
fn points(series: &[u64], highest: bool, top: f64) -> String {
    let slices = SLICES as usize;
    let seconds: Vec<u64> = series
        .chunks(slices)
        .map(|second| second.iter().sum())
        .collect();
    let each = seconds.len().div_ceil(WIDTH as usize).max(1);
    let mut points = String::new();
    for (number, span) in seconds.chunks(each).enumerate() {
        let value = match highest {
            true => span.iter().max().copied().unwrap_or(0) as f64,
            false => span.iter().sum::<u64>() as f64 / span.len() as f64,
        };
        let x = LEFT + WIDTH * (number * each) as f64 / seconds.len() as f64;
        let y = top + HEIGHT * (1.0 - (value / QUOTA_BYTES).min(TOP) / TOP);
        let _ = write!(points, "{x:.1},{y:.1} ");
    }
    points
}
