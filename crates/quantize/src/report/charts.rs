//! The page's charts, as SVG that takes its colours from the page.

use super::Artifact;
use super::words::{bytes, number, unit};
use crate::ModuleReport;
use crate::planner::{decades, escape, ticks};
use marlin_eval::{Breakdown, Kld};
use std::collections::BTreeMap;

/// Width of a chart in its own units, small enough to be read on a phone.
const WIDTH: f64 = 440.0;
/// The colour of so many bits and that of text on it, distinct also to the colour-blind (viridis); others are grey.
const COLOURS: [(u32, &str, &str); 8] = [
    (1, "#fde725", "#000"),
    (2, "#addc30", "#000"),
    (3, "#5ec962", "#000"),
    (4, "#28ae80", "#000"),
    (5, "#21918c", "#fff"),
    (6, "#2c728e", "#fff"),
    (7, "#3b528b", "#fff"),
    (8, "#472d7b", "#fff"),
];

fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> String {
    let ((x1, y1), (x2, y2)) = (from, to);
    format!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>\n")
}

fn text(class: &str, anchor: &str, at: (f64, f64), words: &str) -> String {
    let words = escape(words);
    format!("<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{:.1}\">{words}</text>\n", at.0, at.1)
}

fn svg(label: &str, height: f64, inner: &str) -> String {
    let label = escape(label);
    format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{label}\">\n{inner}</svg>\n")
}

/// A name that has room in a chart.
fn short(name: &str) -> String {
    match name.chars().count() {
        0..=26 => name.to_owned(),
        _ => name.chars().take(25).chain(['…']).collect(),
    }
}

/// KL over size, both as measured, and the front: checkpoints that no smaller one (or one as small) matches.
pub fn front(artifacts: &[(Artifact, Kld)]) -> String {
    let (left, top, right, bottom) = (52.0, 12.0, WIDTH - 14.0, 290.0);
    let points: Vec<(usize, &(Artifact, Kld))> = artifacts.iter().enumerate().filter(|(_, a)| a.1.mean > 0.0).collect();
    let mut same =
        artifacts.iter().filter(|a| a.1.mean <= 0.0).map(|a| escape(&a.0.name)).collect::<Vec<_>>().join(", ");
    if !same.is_empty() {
        same = format!("<p>As the original, and so not in the chart: {same}.</p>\n");
    }
    if points.is_empty() {
        return same;
    }
    let (name, one) = unit(points.iter().map(|p| p.1.0.bytes).max().unwrap_or(0));
    let sizes: Vec<f64> = points.iter().map(|p| p.1.0.bytes as f64 / one).collect();
    let (least, most) = range(sizes.iter().copied());
    let margin = if most > least { 0.06 * (most - least) } else { 0.1 * most };
    let (least, most) = (least - margin, most + margin);
    // An error bar that reaches zero ends at the foot of the chart.
    let ends = |k: &Kld| [k.mean - k.stderr, k.mean, k.mean + k.stderr];
    let (low, high) = range(points.iter().flat_map(|p| ends(&p.1.1)).filter(|v| *v > 0.0).map(f64::log10));
    let (low, high) = (low - 0.12, high + 0.12);
    let x = |size: f64| left + (size - least) / (most - least) * (right - left);
    let y = |kl: f64| bottom - ((kl.log10() - low) / (high - low)).max(0.0) * (bottom - top);

    let mut out = String::new();
    for (value, label) in ticks(least, most) {
        out.push_str(&line("grid", (x(value), top), (x(value), bottom)));
        out.push_str(&text("soft", "middle", (x(value), bottom + 16.0), &label));
    }
    for (value, _) in decades(low, high) {
        out.push_str(&line("grid", (left, y(value)), (right, y(value))));
        out.push_str(&text("soft", "end", (left - 6.0, y(value) + 4.0), &plain(value)));
    }
    out.push_str(&line("axis", (left, bottom), (right, bottom)));
    out.push_str(&line("axis", (left, top), (left, bottom)));
    out.push_str(&text("soft", "middle", ((left + right) / 2.0, bottom + 34.0), &format!("size in {name}")));

    let mut order: Vec<usize> = (0..points.len()).collect();
    let kl = |i: usize| points[i].1.1.mean;
    order.sort_by(|a, b| sizes[*a].total_cmp(&sizes[*b]).then(kl(*a).total_cmp(&kl(*b))));
    let mut best: Vec<usize> = Vec::new();
    for i in &order {
        if best.last().is_none_or(|last| kl(*i) < kl(*last)) {
            best.push(*i);
        }
    }
    let mut steps = Vec::new();
    for (n, i) in best.iter().enumerate() {
        if let Some(before) = n.checked_sub(1).and_then(|n| best.get(n)) {
            steps.push(format!("{:.1},{:.1}", x(sizes[*i]), y(kl(*before))));
        }
        steps.push(format!("{:.1},{:.1}", x(sizes[*i]), y(kl(*i))));
    }
    out.push_str(&format!("<polyline class=\"front\" points=\"{}\"/>\n", steps.join(" ")));
    let mut taken: Vec<Area> = Vec::new();
    for i in &order {
        let (artifact, kld) = points[*i].1;
        let (px, py) = (x(sizes[*i]), y(kld.mean));
        let [from, _, to] = ends(kld).map(|v| if v > 0.0 { y(v) } else { bottom });
        out.push_str(&line("error", (px, from), (px, to)));
        for at in [from, to] {
            out.push_str(&line("error", (px - 4.0, at), (px + 4.0, at)));
        }
        let class = if best.contains(i) { "on" } else { "off" };
        let exact = format!("{}: {}, KL {} ± {}", artifact.name, bytes(artifact.bytes), kld.mean, kld.stderr);
        out.push_str(&format!(
            "<circle class=\"{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"><title>{}</title></circle>\n",
            escape(&exact)
        ));
        taken.push(Area { left: px - 5.0, right: px + 5.0, top: py - 5.0, bottom: py + 5.0 });
    }
    let plot = Area { left, right, top, bottom };
    for i in order {
        let (index, (artifact, kld)) = points[i];
        let name = format!("{} {}", index + 1, short(&artifact.name));
        let at = (x(sizes[i]), y(kld.mean));
        let area = place(at, 6.6 * name.chars().count() as f64, &plot, &taken);
        let middle = (area.top + area.bottom) / 2.0;
        let (anchor, edge) = if area.left > at.0 { ("start", area.left) } else { ("end", area.right) };
        if (middle - at.1).abs() > 1.0 {
            out.push_str(&line("axis", at, (edge, middle)));
        }
        out.push_str(&text("name", anchor, (edge, middle + 4.0), &name));
        taken.push(area);
    }
    format!(
        "<figure class=\"wide\">\n{}<figcaption>KL divergence in nats, on a logarithmic scale, with its standard error. Filled: \
         no smaller checkpoint here is as close to the original.</figcaption>\n</figure>\n{same}",
        svg("KL divergence over size", bottom + 44.0, &out)
    )
}

/// A rectangle of the chart.
#[derive(Clone, Copy)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    fn meets(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }
}

/// Where a name of some width goes: beside its point, or as little above or below that as keeps it clear of what is there.
fn place(at: (f64, f64), width: f64, plot: &Area, taken: &[Area]) -> Area {
    let beside = |right: bool, middle: f64| {
        let left = if right { at.0 + 12.0 } else { at.0 - 12.0 - width };
        Area { left, right: left + width, top: middle - 7.0, bottom: middle + 7.0 }
    };
    let first = at.0 + 12.0 + width <= plot.right;
    let inside =
        |a: &Area| a.left >= plot.left && a.right <= plot.right && a.top >= plot.top && a.bottom <= plot.bottom;
    let moves = (0..40).map(|i| f64::from((i + 1) / 2) * if i % 2 == 0 { -8.0 } else { 8.0 });
    moves
        .flat_map(|by| [first, !first].map(|right| beside(right, at.1 + by)))
        .find(|area| inside(area) && !taken.iter().any(|other| other.meets(area)))
        .unwrap_or_else(|| beside(first, at.1))
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// A tick of a logarithmic axis: as it is, unless that takes many digits.
fn plain(value: f64) -> String {
    if (1e-4..1e4).contains(&value) { format!("{}", (value * 1e6).round() / 1e6) } else { format!("{value:.0e}") }
}

/// How many weights have codes of how many bits: a bar for each checkpoint.
pub fn bits(original: &Artifact, artifacts: &[(Artifact, Kld)]) -> String {
    let mut out = String::new();
    let all = std::iter::once((String::new(), original))
        .chain(artifacts.iter().enumerate().map(|(i, a)| (format!("{} ", i + 1), &a.0)));
    let mut height = 0.0;
    for (index, artifact) in all {
        let mean = format!("{:.3} bits stored", artifact.storage.bits_per_weight);
        out.push_str(&text("", "start", (0.0, height + 14.0), &format!("{index}{}", short(&artifact.name))));
        out.push_str(&text("soft", "end", (WIDTH, height + 14.0), &mean));
        out.push_str(&stack(&artifact.storage, height + 20.0));
        height += 54.0;
    }
    format!(
        "<figure class=\"wide\">\n{}<figcaption>Share of all weights, embedding included, by the bits of their codes; what \
         factors take on top is in the bits stored.</figcaption>\n</figure>\n",
        svg("Shares of weights by bits", height, &out)
    )
}

fn stack(storage: &Breakdown, top: f64) -> String {
    let mut out = String::new();
    let mut left = 0.0;
    for count in &storage.histogram {
        let width = count.share * WIDTH;
        let (fill, ink) =
            COLOURS.iter().find(|c| c.0 == count.bits).map_or(("#a0a6ac", "#000"), |(_, fill, ink)| (*fill, *ink));
        let share = format!("{} bits: {:.2} % of the weights", count.bits, 100.0 * count.share);
        out.push_str(&format!(
            "<rect x=\"{left:.2}\" y=\"{top:.1}\" width=\"{width:.2}\" height=\"24\" fill=\"{fill}\"><title>{share}</title></rect>\n"
        ));
        let label = match width {
            w if w > 84.0 => format!("{} bits {:.1} %", count.bits, 100.0 * count.share),
            w if w > 16.0 => count.bits.to_string(),
            _ => String::new(),
        };
        if !label.is_empty() {
            out.push_str(&format!(
                "<text text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\" style=\"fill:{ink}\">{label}</text>\n",
                left + width / 2.0,
                top + 16.0
            ));
        }
        left += width;
    }
    out
}

/// Mean errors of a layer's weights and, where every module was calibrated, of its outputs: squared error through square.
struct Layer {
    name: String,
    weights: f64,
    outputs: Option<f64>,
}

/// Layers in order, then modules outside of layers by their names.
fn by_layer(modules: &[ModuleReport]) -> Vec<Layer> {
    let mut sums: BTreeMap<(usize, &str), (f64, f64, Option<f64>)> = BTreeMap::new();
    for m in modules {
        let number = m.module.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
        let key = match number {
            Some(layer) => (layer, ""),
            None => (usize::MAX, m.module.rsplit('.').next().unwrap_or("")),
        };
        let weights = m.shape.iter().product::<usize>() as f64;
        let sum = sums.entry(key).or_insert((0.0, 0.0, Some(0.0)));
        sum.0 += weights;
        sum.1 += weights * m.nmse;
        sum.2 = sum.2.zip(m.proxy).map(|(sum, proxy)| sum + weights * proxy);
    }
    let layer = |((number, name), (all, weights, outputs)): ((usize, &str), (f64, f64, Option<f64>))| Layer {
        name: if name.is_empty() { number.to_string() } else { name.trim_start_matches("lm_").to_owned() },
        weights: weights / all.max(1.0),
        outputs: outputs.map(|sum| sum / all.max(1.0)),
    };
    sums.into_iter().map(layer).collect()
}

/// A chart of bars for each checkpoint, all on one scale.
pub fn layers(artifacts: &[(Artifact, Kld)]) -> String {
    let found: Vec<(usize, &Artifact, Vec<Layer>)> =
        artifacts.iter().enumerate().map(|(i, (a, _))| (i, a, by_layer(&a.modules))).collect();
    let unknown: Vec<String> = found.iter().filter(|f| f.2.is_empty()).map(|f| escape(&f.1.name)).collect();
    let all = || found.iter().flat_map(|f| f.2.iter().flat_map(|l| [Some(l.weights), l.outputs])).flatten();
    let most = all().filter(|v| v.is_finite()).fold(0.0, f64::max).sqrt();
    let most = if most > 0.0 { most } else { 1.0 };
    let calibrated = found.iter().any(|f| f.2.iter().any(|l| l.outputs.is_some()));
    let mut out = String::new();
    for (i, artifact, layers) in found.iter().filter(|f| !f.2.is_empty()) {
        out.push_str(&format!(
            "<figure>\n<b>{}</b> {}\n{}</figure>\n",
            i + 1,
            escape(&artifact.name),
            svg(&format!("Errors of the layers of {}", artifact.name), 196.0, &bars(layers, most))
        ));
    }
    if !out.is_empty() {
        let outputs =
            if calibrated { ", <span class=\"key outputs\"></span> of outputs on the calibration text" } else { "" };
        out = format!(
            "<p class=\"note\">Root of the squared error through the square, in per cent, the mean over a layer's weights: \
             <span class=\"key weights\"></span> of weights{outputs}.</p>\n<div class=\"many\">\n{out}</div>\n"
        );
    }
    if !unknown.is_empty() {
        out.push_str(&format!("<p class=\"note\">Without a report of its modules: {}.</p>\n", unknown.join(", ")));
    }
    out
}

fn bars(layers: &[Layer], most: f64) -> String {
    let (left, top, right, bottom) = (40.0, 10.0, WIDTH - 4.0, 170.0);
    let y = |error: f64| bottom - (error / (1.05 * most)).clamp(0.0, 1.0) * (bottom - top);
    let mut out = String::new();
    for (value, label) in ticks(0.0, 105.0 * most) {
        out.push_str(&line("grid", (left, y(value / 100.0)), (right, y(value / 100.0))));
        out.push_str(&text("soft", "end", (left - 5.0, y(value / 100.0) + 4.0), &format!("{label} %")));
    }
    let step = (right - left) / layers.len().max(1) as f64;
    // Names are about as wide as three digits.
    let every = (24.0 / step).ceil().max(1.0) as usize;
    for (i, layer) in layers.iter().enumerate() {
        let start = left + step * i as f64;
        let both: Vec<(&str, f64)> = [("weights", Some(layer.weights)), ("outputs", layer.outputs)]
            .into_iter()
            .filter_map(|(c, v)| Some((c, v?)))
            .collect();
        let width = (0.76 * step / both.len() as f64).min(40.0);
        let from = start + (step - width * both.len() as f64) / 2.0;
        for (n, (class, square)) in both.iter().enumerate() {
            let at = y(square.sqrt());
            out.push_str(&format!(
                "<rect class=\"{class}\" x=\"{:.2}\" y=\"{at:.2}\" width=\"{width:.2}\" height=\"{:.2}\"><title>{}: {class} {} %</title></rect>\n",
                from + width * n as f64,
                bottom - at,
                escape(&layer.name),
                number(100.0 * square.sqrt())
            ));
        }
        if i % every == 0 || layer.name.parse::<usize>().is_err() {
            out.push_str(&text("soft", "middle", (start + step / 2.0, bottom + 16.0), &layer.name));
        }
    }
    out.push_str(&line("axis", (left, bottom), (right, bottom)));
    out
}
