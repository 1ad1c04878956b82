//! One page of HTML that compares quantised checkpoints with their original: sizes, bits, perplexity, divergence, and what
//! happened to each layer. Everything is inside the file, charts and style too; it needs nothing else to be read.

mod charts;
#[cfg(test)]
mod tests;
mod words;

use crate::planner::escape;
use crate::{Error, ModuleReport, REPORT, Report, Result};
use charts::{bits, front, layers};
use marlin_checkpoint::Checkpoint;
use marlin_eval::{Breakdown, Footprint, Kld};
use marlin_models::Architecture;
use words::{bytes, data, grouped, number, part, with_error};

/// Modules that are listed for each checkpoint.
const WORST: usize = 8;

/// A checkpoint as the page shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    /// What it is called.
    pub name: String,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// How its matrices are stored.
    pub storage: Breakdown,
    /// What quantising did to its modules; empty where nothing is known of that.
    pub modules: Vec<ModuleReport>,
}

impl Artifact {
    /// Of a checkpoint: its tensors' names, types and shapes, and the `report.json` beside them, if any. Fails where the
    /// tensors are not those of its architecture, and where that file cannot be understood.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let inventory = Architecture::parse(&checkpoint.config)?.inventory();
        let parts = inventory.check(checkpoint.modules()?.as_ref(), checkpoint.store.as_ref())?;
        let report = checkpoint.folder.text(REPORT)?.map(|text| {
            serde_json::from_str::<Report>(&text).map_err(|e| {
                Error::setting("report.json", "what quantising writes", format!("{}: {e}", checkpoint.name))
            })
        });
        Ok(Self {
            name: checkpoint.name.clone(),
            bytes: Footprint::of(&checkpoint.config, checkpoint.store.as_ref(), &parts).bytes,
            storage: Breakdown::of(&parts.modules),
            modules: report.transpose()?.map(|report| report.modules).unwrap_or_default(),
        })
    }
}

/// What the page is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    original: Artifact,
    artifacts: Vec<(Artifact, Kld)>,
    dataset: String,
}

impl Page {
    /// Of the original, and of each checkpoint that was made of it how far it is from the original on the text `dataset`.
    /// Fails without any, and where they were not measured on the same tokens in the same way.
    pub fn new(original: Artifact, artifacts: Vec<(Artifact, Kld)>, dataset: String) -> Result<Self> {
        let how = |k: &Kld| {
            let Kld { tokens, tokens_scored, protocol, context, stride, .. } = k;
            format!("{tokens_scored} of {tokens} tokens, {protocol} protocol, context {context}, stride {stride}")
        };
        let Some((_, first)) = artifacts.first() else {
            return Err(Error::setting("artifacts", "at least one", "none"));
        };
        if let Some((other, kld)) = artifacts.iter().find(|(_, kld)| how(kld) != how(first)) {
            return Err(Error::setting("results", how(first), format!("{} for {}", how(kld), other.name)));
        }
        Ok(Self { original, artifacts, dataset })
    }

    /// The page.
    pub fn html(&self) -> String {
        let title = format!("{}, quantised", self.original.name);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{}</style>\n</head>\n\
             <body>\n<main>\n<h1>{title}</h1>\n{}{}",
            include_str!("style.css"),
            self.about(),
            self.table(),
            title = escape(&title)
        );
        out.push_str(&section("Divergence and size", &front(&self.artifacts)));
        out.push_str(&section("Bits of the codes", &bits(&self.original, &self.artifacts)));
        out.push_str(&section("Error of each layer", &layers(&self.artifacts)));
        out.push_str(&section("Modules with the largest errors", &self.worst()));
        out.push_str("</main>\n</body>\n</html>\n");
        out
    }

    fn about(&self) -> String {
        let Some((_, k)) = self.artifacts.first() else { return String::new() };
        format!(
            "<p>{} against the original on {}: {} positions of {} tokens, {} protocol, context {}, stride {}. \
             ± is one standard error.</p>\n",
            match self.artifacts.len() {
                1 => "One checkpoint".to_owned(),
                n => format!("{n} checkpoints"),
            },
            escape(&self.dataset),
            grouped(k.tokens_scored as u64),
            grouped(k.tokens as u64),
            escape(&k.protocol),
            k.context,
            k.stride
        )
    }

    fn table(&self) -> String {
        let mut out = "<table>\n<thead><tr>".to_owned();
        COLUMNS.iter().for_each(|name| out.push_str(&format!("<th scope=\"col\">{name}</th>")));
        out.push_str("</tr></thead>\n<tbody>\n");
        let reference = self.artifacts.first().map(|(_, kld)| (kld.ppl_reference, kld.ppl_reference_stderr));
        let perplexity = reference.map_or(String::new(), |(ppl, error)| with_error(ppl, error));
        let none = String::new;
        out.push_str(&row(
            &format!("{} <small>original</small>", escape(&self.original.name)),
            [
                size(&self.original, None),
                stored(&self.original),
                mix(&self.original),
                perplexity,
                none(),
                none(),
                none(),
            ],
        ));
        for (i, (artifact, kld)) in self.artifacts.iter().enumerate() {
            let ratio = kld.ln_ppl_ratio.exp();
            let perplexity = format!(
                "{} <small>{:+.2} % ± {:.2} %</small>",
                with_error(kld.ppl_quantised, kld.ppl_quantised_stderr),
                100.0 * (ratio - 1.0),
                100.0 * ratio * kld.ln_ppl_ratio_stderr
            );
            let divergence = format!(
                "{} <small>median {}, 99th percentile {}</small>",
                with_error(kld.mean, kld.stderr),
                number(kld.percentiles.p50),
                number(kld.percentiles.p99)
            );
            let flips = kld.flips.as_ref().map_or(String::new(), |flips| {
                format!("{} <small>{} of tokens in some layer</small>", part(flips.mean), part(flips.tokens))
            });
            out.push_str(&row(
                &format!("<b>{}</b> {}", i + 1, escape(&artifact.name)),
                [
                    size(artifact, Some(&self.original)),
                    stored(artifact),
                    mix(artifact),
                    perplexity,
                    divergence,
                    part(kld.top1_agreement),
                    flips,
                ],
            ));
        }
        out.push_str("</tbody>\n</table>\n");
        out.push_str(
            "<p class=\"note\">Bits are of all matrices as they are stored, factors included. Perplexity in small: how much \
             above the original, token by token. KL divergence is of the original's predictions from the quantised ones, in \
             nats. Flipped: choices of a router that differ from the original's.</p>\n",
        );
        out
    }

    fn worst(&self) -> String {
        let mut out = String::new();
        for (i, (artifact, _)) in self.artifacts.iter().enumerate().filter(|(_, (a, _))| !a.modules.is_empty()) {
            let mut modules: Vec<&ModuleReport> = artifact.modules.iter().collect();
            let error = |m: &ModuleReport| m.proxy.unwrap_or(m.nmse);
            modules.sort_by(|a, b| error(b).total_cmp(&error(a)));
            out.push_str(&format!("<details><summary><b>{}</b> {}</summary>\n<ol>\n", i + 1, escape(&artifact.name)));
            for m in modules.into_iter().take(WORST) {
                let outputs = m.proxy.map_or(String::new(), |p| format!("outputs {}, ", data(p, &number(p))));
                out.push_str(&format!(
                    "<li><code>{}</code> <small>{outputs}weights {}, {} bits, {}</small></li>\n",
                    escape(&m.module),
                    data(m.nmse, &number(m.nmse)),
                    data(m.bits, &format!("{:.2}", m.bits)),
                    escape(&m.method)
                ));
            }
            out.push_str("</ol>\n</details>\n");
        }
        if out.is_empty() { "<p>No checkpoint has a report of its modules.</p>\n".to_owned() } else { out }
    }
}

/// Columns of the table.
const COLUMNS: [&str; 8] = [
    "Checkpoint",
    "Size",
    "Bits a weight",
    "Stored as",
    "Perplexity",
    "KL divergence",
    "Same likeliest",
    "Flipped experts",
];

fn section(title: &str, inner: &str) -> String {
    format!("<section>\n<h2>{title}</h2>\n{inner}</section>\n")
}

fn row(name: &str, cells: [String; 7]) -> String {
    let cell = |(cell, column): (String, &&str)| match cell.is_empty() {
        true => format!("<td data-of=\"{column}\" class=\"none\"><div>–</div></td>"),
        false => format!("<td data-of=\"{column}\"><div>{cell}</div></td>"),
    };
    let cells: String = cells.into_iter().zip(&COLUMNS[1..]).map(cell).collect();
    format!("<tr><th scope=\"row\">{name}</th>{cells}</tr>\n")
}

fn size(artifact: &Artifact, original: Option<&Artifact>) -> String {
    let ratio = original.map_or(String::new(), |o| {
        format!(", {:.1} % of the original", 100.0 * artifact.bytes as f64 / o.bytes.max(1) as f64)
    });
    format!(
        "<data value=\"{}\">{}</data> <small>{} bytes{ratio}</small>",
        artifact.bytes,
        bytes(artifact.bytes),
        grouped(artifact.bytes)
    )
}

fn stored(artifact: &Artifact) -> String {
    let storage = &artifact.storage;
    format!(
        "{} <small>{} without embedding and head</small>",
        data(storage.bits_per_weight, &format!("{:.3}", storage.bits_per_weight)),
        data(storage.bits_per_inner_weight, &format!("{:.3}", storage.bits_per_inner_weight))
    )
}

/// Ways of storing, by weights.
fn mix(artifact: &Artifact) -> String {
    let all: u64 = artifact.storage.schemes.iter().map(|s| s.weights).sum();
    let share = |weights: u64| 100.0 * weights as f64 / all.max(1) as f64;
    let one = |s: &marlin_eval::breakdown::SchemeCount| {
        format!("<span>{} {} <small>{:.1} %</small></span>", escape(s.scheme), escape(&s.detail), share(s.weights))
    };
    artifact.storage.schemes.iter().map(one).collect::<Vec<_>>().join(" ")
}
