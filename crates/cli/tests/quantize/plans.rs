//! Plans: made, measured, edited, applied.

use crate::common::{marlin, shared};
use crate::{original, path, text};
use std::path::Path;

#[test]
fn plans_are_made_edited_and_applied() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let at = |name: &str| path(folder.path(), name);
    let (stats, plan, chart) = (at("stats"), at("plan.txt"), at("chart.svg"));
    marlin(&["calibrate", original(), "--text", &text, "--samples", "3", "--length", "64", "-o", &stats]).ok();
    let make = |bits: &str, output: &str, more: &[&str]| {
        let mut args =
            vec!["quantize", "plan", original(), "--format", "int4", "--rounding", "nearest", "--bits", bits];
        args.extend(["--stats", &stats, "-o", output, "--probe-rows", "32", "--group", "64"]);
        args.extend(more);
        marlin(&args)
    };
    let said = make("3.5", &plan, &["--min-bits", "3", "--max-bits", "5", "--pareto", &chart]).ok();
    assert!(said.contains("uniform bits at the same size") && said.contains("experts with tuples of bits"), "{said}");
    assert!(std::fs::read_to_string(&chart).unwrap().starts_with("<svg"));
    let refused = make("2.5", &at("no.txt"), &["--min-bits", "3", "--max-bits", "5"]).error(1);
    assert!(refused.contains("is tried at [3, 4, 5] bits only"), "{refused}");
    let refused = make("1.5", &at("no.txt"), &[]).error(1);
    assert!(refused.contains("int4 has no 1"), "{refused}");
    let refused = make("3.5", &at("no.txt"), &["--pareto", &chart]).error(1);
    assert!(refused.contains("chart.svg: is there already") && !Path::new(&at("no.txt")).exists(), "{refused}");
    let refused = make("3.5", &plan, &[]).error(1);
    assert!(refused.contains("is there already"), "{refused}");

    // A line less.
    let written = std::fs::read_to_string(&plan).unwrap();
    let less: String =
        written.lines().filter(|l| !l.contains("layers.1.self_attn.o_proj")).map(|l| format!("{l}\n")).collect();
    std::fs::write(at("less.txt"), less).unwrap();
    let refused = marlin(&["quantize", "apply", &at("less.txt"), original(), "-o", &at("x")]).error(1);
    assert!(refused.contains("model.layers.1.self_attn.o_proj has no bits; add a line"), "{refused}");

    // Two lines by hand: one module with more bits, one left as it is.
    let edited: String = written
        .lines()
        .map(|line| match line.split(' ').next() {
            Some("model.layers.0.self_attn.q_a_proj") => "model.layers.0.self_attn.q_a_proj 8 # more\n".to_owned(),
            Some("model.layers.0.self_attn.o_proj") => "model.layers.0.self_attn.o_proj 16\n".to_owned(),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(edited.matches("# more").count(), 1);
    std::fs::write(&plan, &edited).unwrap();
    let out = at("out");
    let report = marlin(&["quantize", "apply", &plan, original(), "-o", &out, "--json"]).json();
    let modules = report["modules"].as_array().unwrap();
    let bits = |module: &str| {
        let found = modules.iter().find(|m| m["module"] == format!("model.layers.0.{module}"));
        found.map(|m| m["bits"].as_f64().unwrap().floor())
    };
    assert_eq!((bits("self_attn.q_a_proj"), bits("self_attn.o_proj")), (Some(8.0), None));
    // 3.5 bits of codes, and 16 for each 64.
    let average = report["bits"].as_f64().unwrap();
    assert!((3.6..3.9).contains(&average), "{average}");
    marlin(&["verify", &out]).ok();

    std::fs::write(&plan, edited.replace("layers.0.self_attn.q_a_proj", "layers.9.self_attn.q_a_proj")).unwrap();
    let refused = marlin(&["quantize", "apply", &plan, original(), "-o", &at("x")]).error(1);
    assert!(refused.contains("model.layers.9.self_attn.q_a_proj is to have 8 bits"), "{refused}");
}

/// The number behind `what`.
fn number(said: &str, what: &str) -> f64 {
    let rest = said.split(what).nth(1).unwrap_or_else(|| panic!("{what}: {said}"));
    rest.trim_start().split([' ', ',', ')', '\n']).next().unwrap().parse().unwrap()
}

#[test]
fn plans_are_measured_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let at = |name: &str| path(folder.path(), name);
    let stats = at("stats");
    marlin(&["calibrate", original(), "--text", &text, "--samples", "3", "--length", "64", "-o", &stats]).ok();
    let make = |output: &str, more: &[&str]| {
        let mut args = vec!["quantize", "plan", original(), "--format", "gptq", "--bits", "3,ffn=8"];
        args.extend(["--max-bits", "4", "--stats", &stats, "-o", output, "--probe-rows", "16"]);
        args.extend(["--measure-samples", "2", "--measure-length", "48"]);
        args.extend(more);
        marlin(&args)
    };
    let (kept, with) = (at("damages.json"), ["--measure", &text]);
    make(&at("first.txt"), &[&with[..], &["--damages", &kept]].concat()).ok();
    make(&at("second.txt"), &[&with[..], &["--damages", &kept]].concat()).ok();
    assert_eq!(std::fs::read(at("first.txt")).unwrap(), std::fs::read(at("second.txt")).unwrap());
    let refused = make(&at("no.txt"), &["--damages", &kept]).error(1);
    assert!(refused.contains("these damages were found otherwise (measured)"), "{refused}");
    let made = make(&at("plan.txt"), &["--measure", &text, "--refine", "3", "--check-order", &text]);
    assert_eq!(made.stderr.matches(", predicted ").count(), 3, "{}", made.stderr);
    let said = made.ok();
    let rho = number(&said, "measured divergence:");
    assert!(rho > number(&said, "without --measure:"), "{said}");
    let mixed = std::fs::read_to_string(at("plan.txt")).unwrap();
    assert!(mixed.lines().any(|line| line.ends_with("_proj 4")) && mixed.lines().any(|line| line.ends_with("_proj 2")));

    // Three bits for all, and no more.
    make(&at("uniform.txt"), &["--uniform"]).ok();
    let uniform = std::fs::read_to_string(at("uniform.txt")).unwrap();
    let attention: Vec<&str> = uniform.lines().filter(|line| line.contains("self_attn.")).collect();
    assert!(attention.len() == 24 && attention.iter().all(|line| line.ends_with(" 3")), "{uniform}");
    assert_eq!(uniform.matches("gate_proj=8 up_proj=8 down_proj=8").count(), 80);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 7);
    let refused = make(&at("no.txt"), &["--refine", "3"]);
    assert!(refused.stderr.contains("--measure <FILE>"), "{}", refused.stderr);
    refused.error(2);
}

/// Measured on one text, errors of single modules have the predicted order on another.
#[test]
fn measured_damages_have_the_right_order() {
    let files = ["models/fable-qwen3", "text/fable-calibration.txt", "text/fable-heldout.txt"].map(shared);
    let [Some(model), Some(text), Some(other)] = &files else { return };
    let folder = tempfile::tempdir().unwrap();
    let [stats, plan] = ["stats", "plan.txt"].map(|name| path(folder.path(), name));
    marlin(&["calibrate", model, "--text", text, "--samples", "16", "--length", "512", "-o", &stats]).ok();
    let mut args = vec!["quantize", "plan", model, "--format", "int4", "--bits", "3", "--max-bits", "4", "-o", &plan];
    args.extend(["--stats", &stats, "--measure", text, "--check-order", other, "--measure-samples", "4"]);
    args.extend(["--measure-length", "256"]);
    let said = marlin(&args).ok();
    assert!(number(&said, "measured divergence:") >= 0.8, "{said}");
}

#[test]
fn plans_keep_bits_by_role_and_settings() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let at = |name: &str| path(folder.path(), name);
    let (stats, plan, chart, out) = (at("stats"), at("plan.txt"), at("chart.svg"), at("out"));
    marlin(&["calibrate", original(), "--text", &text, "--samples", "3", "--length", "64", "-o", &stats]).ok();
    let common = ["--format", "gptq", "--group", "64", "--order", "dynamic", "--damping", "0.05", "--stats", &stats];
    let mut args = vec!["quantize", "plan", original(), "--bits", "3.5,attn=8", "--head-bits", "3", "-o", &plan];
    args.extend(common.iter().chain(&["--probe-rows", "32", "--pareto", &chart]));
    marlin(&args).ok();
    assert!(std::fs::read_to_string(&chart).unwrap().starts_with("<svg"));
    let written = std::fs::read_to_string(&plan).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    let own = ["lm_head 3", "model.layers.1.self_attn.q_a_proj 8", "set order dynamic", "set damping 0.05"];
    assert!(own.iter().all(|line| lines.contains(line)), "{written}");
    let apply = ["quantize", "apply", &plan, original(), "--stats", &stats, "-o", &out, "--json"];
    let report = marlin(&apply).json();
    let modules = report["modules"].as_array().unwrap();
    let method = |module: &str| {
        let found = modules.iter().find(|m| m["module"] == module).unwrap();
        found["method"].as_str().unwrap().to_owned()
    };
    assert_eq!(method("lm_head"), "gptq 3 bits g64, gptq, act-order with groups, damping 0.05");
    assert_eq!(
        method("model.layers.1.self_attn.q_a_proj"),
        "gptq 8 bits g64, gptq, act-order with groups, damping 0.05"
    );
}
