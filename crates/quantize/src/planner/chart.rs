//! A small chart as SVG: lines through points, the vertical axis logarithmic.

use std::fmt::Write;

/// A line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What it is called.
    pub name: String,
    /// Points; those whose second coordinate is not above 0 are left out.
    pub points: Vec<(f64, f64)>,
}

/// Width and height of the chart, and the plot's distances from its edges: left, top, right, bottom.
const SIZE: (f64, f64) = (720.0, 440.0);
const EDGE: (f64, f64, f64, f64) = (80.0, 40.0, 24.0, 56.0);
/// Colours that are told apart by most eyes, and in grey.
const COLOURS: [&str; 5] = ["#0060a8", "#d05000", "#208040", "#7040a0", "#505050"];

/// The chart of `series`, with a title and the names (and units) of both axes.
pub fn chart(title: &str, across: &str, up: &str, series: &[Series]) -> String {
    let good = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite() && p.1 > 0.0;
    let points = || series.iter().flat_map(|s| s.points.iter().filter(good));
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)))
    };
    let (mut left, mut right) = range(&mut points().map(|p| p.0));
    let (mut low, mut high) = range(&mut points().map(|p| p.1.log10()));
    if left > right {
        (left, right, low, high) = (0.0, 1.0, 0.0, 1.0);
    }
    if right - left < 1e-9 {
        (left, right) = (left - 0.5, right + 0.5);
    }
    (low, high) = if high - low < 1e-9 { (low - 0.5, high + 0.5) } else { (low - 0.05, high + 0.05) };
    let x = |v: f64| EDGE.0 + (v - left) / (right - left) * (SIZE.0 - EDGE.0 - EDGE.2);
    let y = |v: f64| SIZE.1 - EDGE.3 - (v.log10() - low) / (high - low) * (SIZE.1 - EDGE.1 - EDGE.3);

    let mut svg = String::new();
    // Writing to a string cannot fail.
    let mut line = |text: String| _ = writeln!(svg, "{text}");
    line(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"13\">",
        SIZE.0, SIZE.1
    ));
    line(format!("<rect width=\"{}\" height=\"{}\" fill=\"white\"/>", SIZE.0, SIZE.1));
    let text = |x: f64, y: f64, more: &str, text: &str| {
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {more}>{}</text>", escape(text))
    };
    let (bottom, far) = (SIZE.1 - EDGE.3, SIZE.0 - EDGE.2);
    line(text(SIZE.0 / 2.0, 22.0, "text-anchor=\"middle\" font-size=\"16\"", title));
    let rule = |x1: f64, y1: f64, x2: f64, y2: f64, colour: &str| {
        format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>")
    };
    for (value, label) in ticks(left, right) {
        line(rule(x(value), EDGE.1, x(value), bottom, "#e0e0e0"));
        line(text(x(value), bottom + 18.0, "text-anchor=\"middle\"", &label));
    }
    for (value, label) in decades(low, high) {
        line(rule(EDGE.0, y(value), far, y(value), "#e0e0e0"));
        line(text(EDGE.0 - 6.0, y(value) + 4.0, "text-anchor=\"end\"", &label));
    }
    line(rule(EDGE.0, bottom, far, bottom, "black"));
    line(rule(EDGE.0, EDGE.1, EDGE.0, bottom, "black"));
    line(text((EDGE.0 + far) / 2.0, SIZE.1 - 14.0, "text-anchor=\"middle\"", across));
    let middle = (EDGE.1 + bottom) / 2.0;
    line(text(18.0, middle, &format!("text-anchor=\"middle\" transform=\"rotate(-90 18 {middle:.1})\""), up));
    for (i, series) in series.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<(f64, f64)> = series.points.iter().filter(good).map(|p| (x(p.0), y(p.1))).collect();
        let path: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", p.0, p.1)).collect();
        line(format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" ")));
        for p in &points {
            line(format!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", p.0, p.1));
        }
        let row = EDGE.1 + 16.0 + 18.0 * i as f64;
        line(format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
            far - 16.0,
            row - 10.0
        ));
        line(text(far - 22.0, row, "text-anchor=\"end\"", &series.name));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text as XML and HTML have it, between tags and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}

/// Round values from `from` to `to`, five or so.
pub(crate) fn ticks(from: f64, to: f64) -> Vec<(f64, String)> {
    let raw = (to - from) / 6.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw).unwrap_or(raw);
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let first = (from / step).ceil() as i64;
    let last = (to / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).map(|v| (v, format!("{v:.digits$}"))).collect()
}

/// 1, 2 and 5 times powers of ten between the powers of ten `low` and `high`; whole powers alone where those are many.
pub(crate) fn decades(low: f64, high: f64) -> Vec<(f64, String)> {
    let parts: &[f64] = if high - low > 4.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = low.floor() as i32..=high.ceil() as i32;
    let values = powers.flat_map(|power| parts.iter().map(move |part| (part * 10f64.powi(power), *part, power)));
    values
        .filter(|(value, ..)| (low..=high).contains(&value.log10()))
        .map(|(value, part, power)| (value, format!("{part}e{power}")))
        .collect()
}
