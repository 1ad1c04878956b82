//! Calibrating, quantising, resuming after a kill, verifying, comparing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{command, fable, marlin, root, shared};
use marlin_checkpoint::{Store, TensorSource};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

/// The folder of the model that is quantised.
fn original() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(fable)
}

/// A text of some hundred tokens.
fn text(folder: &Path) -> String {
    let path = folder.join("text.txt");
    let names = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana"];
    let things = ["a red kite", "an old map", "the last apple", "a tiny boat", "seven stones"];
    let text: String = (0..60)
        .map(|i| {
            let (a, b) = (names[i % 8], names[(3 * i + 1) % 8]);
            format!("One day {a} found {} by the river. {b} said, \"May I see it?\" and {a} smiled.\n", things[i % 5])
        })
        .collect();
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_string_lossy().into_owned()
}

/// Arguments of a run that writes `output`.
fn quantise<'a>(text: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let small = ["--samples", "3", "--length", "64", "--shard-size", "2", "--threads", "2"];
    let mut args = vec!["quantize", original(), "--text", text, "-o", output];
    args.extend(small.iter().chain(more));
    args
}

fn same(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let differ: Vec<_> = a.iter().filter(|(name, bytes)| **bytes != b[*name]).map(|(name, _)| name).collect();
    assert!(differ.is_empty(), "{differ:?}");
}

#[test]
fn plain_weights_come_through_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (text(folder.path()), path(folder.path(), "out"));
    marlin(&quantise(&text, &out, &["--format", "bf16"])).ok();
    let (plain, written) = (Store::open(Path::new(original())).unwrap(), Store::open(Path::new(&out)).unwrap());
    assert_eq!(plain.tensors().len(), written.tensors().len());
    for info in plain.tensors() {
        let (a, b) = (plain.tensor(&info.name).unwrap(), written.tensor(&info.name).unwrap());
        assert_eq!((&a.info, *a.data == *b.data), (&b.info, true), "{}", info.name);
    }
    assert!(written.files().len() > 3);
    let kld = marlin(&["eval", "kld", original(), &out, "--text", &text, "--json"]).json();
    assert_eq!((kld["mean"].as_f64(), kld["top1_agreement"].as_f64()), (Some(0.0), Some(1.0)));
    assert_eq!(kld["flips"]["tokens"].as_f64(), Some(0.0));
    marlin(&["verify", &out]).ok();
}

/// Ends the program by SIGKILL once the journal has `lines` lines.
fn kill_at(args: &[&str], unfinished: &Path, lines: usize) {
    let mut child = command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let journal = unfinished.join("journal.jsonl");
    loop {
        let written = std::fs::read(&journal).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
        if written >= lines || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn killed_runs_continue(more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let (whole, out) = (path(folder.path(), "whole"), path(folder.path(), "out"));
    marlin(&quantise(&text, &whole, more)).ok();
    let args = quantise(&text, &out, more);
    let unfinished = folder.path().join("out.unfinished");
    let mut resumed = args.clone();
    resumed.push("--resume");
    for (i, lines) in [1, 40, 170, 285].into_iter().enumerate() {
        kill_at(if i == 0 { &args } else { &resumed }, &unfinished, lines);
        assert!(!Path::new(&out).exists(), "whole after {lines} lines");
    }
    // A torn line and bytes that no line tells of.
    let append = |name: &str, bytes: &[u8]| {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().append(true).open(unfinished.join(name)).unwrap();
        file.write_all(bytes).unwrap();
    };
    append("journal.jsonl", b"{\"Module\":{\"module\":\"model.lay");
    let data =
        files(&unfinished.canonicalize().unwrap().join(".")).into_keys().find(|n| n.starts_with("data-")).unwrap();
    append(&data, b"torn");
    let refused = marlin(&args).error(1);
    assert!(refused.contains("--resume continues it"), "{refused}");
    marlin(&resumed).ok();
    same(Path::new(&whole), Path::new(&out));
    assert!(!unfinished.exists());
}

#[test]
fn a_killed_run_is_continued_to_the_same_bytes() {
    killed_runs_continue(&["--format", "int4"]);
}

#[test]
fn a_killed_sequential_run_is_continued_to_the_same_bytes() {
    killed_runs_continue(&["--format", "int4", "--sequential", "--expert-inputs", "shared"]);
}

#[test]
fn two_runs_do_not_work_in_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (text(folder.path()), path(folder.path(), "out"));
    let unfinished = folder.path().join("out.unfinished");
    let args = quantise(&text, &out, &["--format", "int4", "--resume"]);
    kill_at(&args, &unfinished, 1);
    // As another run would hold it.
    let lock = std::fs::File::options().write(true).open(unfinished.join(".lock")).unwrap();
    lock.try_lock().unwrap();
    let refused = marlin(&args).error(1);
    assert!(refused.contains("out.unfinished") && refused.contains("another run is at work in it"), "{refused}");
    drop(lock);
    marlin(&args).ok();
    assert!(!unfinished.exists());
    marlin(&["verify", &out]).ok();

    let stats = folder.path().join("stats");
    std::fs::create_dir(&stats).unwrap();
    let lock = std::fs::File::create(stats.join(".lock")).unwrap();
    lock.try_lock().unwrap();
    let (stats, small) = (stats.to_string_lossy(), ["--samples", "1", "--length", "16"]);
    let calibrate = [&["calibrate", original(), "--text", &text, "-o", &stats][..], &small].concat();
    assert!(marlin(&calibrate).error(1).contains("another run is at work in it"));
    drop(lock);
    marlin(&calibrate).ok();
    assert!(!Path::new(&*stats).join(".lock").exists());
}

#[test]
fn experts_are_stacked_for_mlx() {
    let folder = tempfile::tempdir().unwrap();
    let (text, plan) = (text(folder.path()), path(folder.path(), "plan.txt"));
    let [out, stats, mixed] = ["out", "stats", "mixed"].map(|name| path(folder.path(), name));
    marlin(&["quantize", original(), "--format", "mlx", "--bits", "4", "-o", &out]).ok();
    let (plain, written) = (Store::open(Path::new(original())).unwrap(), Store::open(Path::new(&out)).unwrap());
    let names: Vec<&str> =
        written.tensors().iter().map(|t| t.name.as_str()).filter(|n| n.contains("experts.")).collect();
    assert!(names.iter().all(|name| name.contains("shared_experts")), "{names:?}");
    let mlp = "model.layers.2.mlp";
    let part = |name: &str| written.tensor(&format!("{mlp}.switch_mlp.up_proj.{name}")).unwrap();
    assert_eq!(part("weight").info.shape, [16, 128, 32]);
    let (scales, biases) = (part("scales").to_f32().unwrap(), part("biases").to_f32().unwrap());
    let codes = part("weight").data;
    // The squared error of Gaussian weights at these settings is .008 of their square.
    for expert in 0..16 {
        let name = format!("{mlp}.experts.{expert}.up_proj.weight");
        let weights = plain.tensor(&name).unwrap().to_f32().unwrap();
        let (mut error, mut square) = (0.0, 0.0);
        for (i, weight) in weights.iter().enumerate() {
            let at = expert * weights.len() + i;
            let code = codes[at / 2] >> (4 * (at % 2)) & 15;
            error += (scales[at / 64] * f32::from(code) + biases[at / 64] - weight).powi(2);
            square += weight.powi(2);
        }
        assert!((0.004..0.012).contains(&(error / square)), "{name}: {}", error / square);
    }
    marlin(&["verify", &out]).ok();
    let report = std::fs::read_to_string(Path::new(&out).join("report.json")).unwrap();
    assert_eq!(report.matches("experts.15.up_proj").count(), 5);

    // Bits between whole ones: the experts of a stack have the same.
    let small = ["--samples", "3", "--length", "64"];
    marlin(&[&["calibrate", original(), "--text", &text, "-o", &stats][..], &small].concat()).ok();
    let with = ["--bits", "3.5", "--stats", &stats, "-o", &plan];
    marlin(&[&["quantize", "plan", original(), "--format", "mlx"][..], &with].concat()).ok();
    marlin(&["quantize", "apply", &plan, original(), "--stats", &stats, "-o", &mixed]).ok();
    marlin(&["verify", &mixed]).ok();
    let text = std::fs::read_to_string(&plan).unwrap();
    let (line, own): (String, &str) = text
        .lines()
        .find_map(|line| {
            Some((line.to_owned(), line.strip_prefix("model.layers.2.mlp.experts.3 ")?.split(' ').next()?))
        })
        .unwrap();
    let other = if own.ends_with('3') { "gate_proj=4" } else { "gate_proj=3" };
    std::fs::write(&plan, text.replace(&line, &line.replace(own, other))).unwrap();
    let refused = marlin(&["quantize", "apply", &plan, original(), "--stats", &stats, "-o", &out]).error(1);
    assert!(refused.contains("will not be overwritten"), "{refused}");
    let third = path(folder.path(), "third");
    let refused = marlin(&["quantize", "apply", &plan, original(), "--stats", &stats, "-o", &third]).error(1);
    assert!(refused.contains("keeps both in one stack, model.layers.2.mlp.switch_mlp.gate_proj"), "{refused}");
}

#[test]
fn a_run_is_not_continued_with_other_settings() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (text(folder.path()), path(folder.path(), "out"));
    kill_at(&quantise(&text, &out, &["--format", "int4"]), &folder.path().join("out.unfinished"), 1);
    for other in [&["--damping", "0.05"][..], &["--exact"]] {
        let more = [&["--format", "int4", "--resume"], other].concat();
        let refused = marlin(&quantise(&text, &out, &more)).error(1);
        assert!(refused.contains("was begun with another model, text or settings"), "{refused}");
    }
}

#[test]
fn statistics_on_disk_do_what_a_text_does() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let at = |name: &str| path(folder.path(), name);
    let (stats, a, b) = (at("stats"), at("a"), at("b"));
    let calibrate =
        ["calibrate", original(), "--text", &text, "--samples", "3", "--length", "64", "-o", &stats, "--threads", "1"];
    marlin(&calibrate).ok();
    let refused = marlin(&calibrate).error(1);
    assert!(refused.contains("--resume continues"), "{refused}");
    marlin(&quantise(&text, &a, &["--format", "int4"])).ok();
    let from_stats = ["quantize", original(), "--format", "int4", "--stats", &stats, "--shard-size", "2", "-o", &b];
    marlin(&from_stats).ok();
    same(Path::new(&a), Path::new(&b));

    // A layer that is missing, and one that has not seen everything.
    let (layer, head) = (Path::new(&stats).join("layer-00002.safetensors"), Path::new(&stats).join("head.safetensors"));
    let kept = std::fs::read(&layer).unwrap();
    std::fs::remove_file(&layer).unwrap();
    let out = at("c");
    let again = ["quantize", original(), "--format", "int4", "--stats", &stats, "-o", &out];
    let missing = marlin(&again).error(1);
    assert!(missing.contains("layer-00002.safetensors: is missing: the calibration was interrupted"), "{missing}");
    std::fs::copy(&head, &layer).unwrap();
    let unseen = marlin(&again).error(1);
    assert!(unseen.contains("model.layers.2.") && unseen.contains("calibration has not seen its inputs"), "{unseen}");
    assert!(!Path::new(&out).exists());
    // Continued, it is as before.
    std::fs::remove_file(&layer).unwrap();
    std::fs::remove_file(&head).unwrap();
    marlin(&[&calibrate[..], &["--resume"]].concat()).ok();
    assert!(std::fs::read(&layer).unwrap() == kept);
    if let Some(other) = shared("models/fable-qwen3") {
        let refused = marlin(&["quantize", &other, "--format", "int4", "--stats", &stats, "-o", &at("d")]).error(1);
        assert!(refused.contains("these are statistics of fable-glm4-moe-lite"), "{refused}");
    }
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let out = path(folder.path(), "out");
    let short = ["quantize", original(), "--format", "int4", "--text", &text, "--length", "4096", "-o", &out];
    let error = marlin(&short).error(1);
    assert!(error.starts_with("the calibration text has ") && error.contains("a window 4096"), "{error}");
    let error = marlin(&["quantize", original(), "--format", "int4", "--rounding", "gptq", "-o", &out]).error(1);
    assert!(error.contains("--rounding gptq needs a text"), "{error}");
    let error = marlin(&["quantize", original(), "--format", "int4", "--group", "100", "-o", &out]).error(1);
    assert!(error.contains("groups of 100 do not divide"), "{error}");
    let error = marlin(&["quantize", original(), "--format", "gptq", "-o", &out]).error(1);
    assert!(error.contains("some module (--bits)"), "{error}");
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"text\": \"fine\"}\n{\"txt\": 1}\n").unwrap();
    let error =
        marlin(&["quantize", original(), "--format", "int4", "--text", &bad.to_string_lossy(), "-o", &out]).error(1);
    assert!(error.contains("bad.jsonl line 2: expected {\"text\""), "{error}");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(Path::new(&out).join("mine.txt"), "keep").unwrap();
    let error = marlin(&["quantize", original(), "--format", "int4", "-o", &out]).error(1);
    assert!(error.contains("is there already and will not be overwritten"), "{error}");
    assert_eq!(files(Path::new(&out)).len(), 1);
    assert!(!folder.path().join("out.unfinished").exists());
}

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

#[test]
fn what_cannot_succeed_is_refused_before_calibrating() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let out = path(folder.path(), "out");
    let error = |more: &[&str], output: &str| marlin(&quantise(&text, output, more)).error(1);
    let refused = error(&["--format", "int4", "--bits", "3.5", "--sequential"], &out);
    assert!(refused.contains("--sequential: bits that are no whole number"), "{refused}");
    let refused = error(&["--format", "gptq", "--bits", "4.5"], &out);
    assert!(refused.contains("gptq has no 5, only [2, 3, 4, 8]"), "{refused}");
    let refused = error(&["--format", "int4", "--order", "dynamic"], &out);
    assert!(refused.contains("an order with static groups"), "{refused}");
    let refused = error(&["--format", "int4", "--damping", "2"], &out);
    assert!(refused.contains("damping: expected 0 to 1, found 2"), "{refused}");
    for nameless in [".", &format!("{out}/..")] {
        let refused = error(&["--format", "int4"], nameless);
        assert!(refused.contains("has no name that the new folder could get"), "{refused}");
    }
    assert_eq!(files(folder.path()).into_keys().collect::<Vec<_>>(), ["text.txt"]);
    std::fs::create_dir(&out).unwrap();
    std::fs::write(Path::new(&out).join("mine.txt"), "keep").unwrap();
    let refused = error(&["--format", "int4", "--bits", "3.5"], &out);
    assert!(refused.contains("is there already"), "{refused}");
    assert!(!folder.path().join("out.stats").exists());
}

/// The built-in model with the gate and up projections of all experts of a layer in one tensor, and the down projections,
/// these as F32.
fn stacked(folder: &Path) -> PathBuf {
    let from = root().join("models/fable-glm4-moe-lite");
    let to = folder.join("stacked");
    std::fs::create_dir(&to).unwrap();
    for (name, contents) in files(&from) {
        std::fs::write(to.join(name), contents).unwrap();
    }
    let store = Store::open(&from).unwrap();
    let mut tensors: BTreeMap<String, (String, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for info in store.tensors() {
        let expert = info.name.split_once(".experts.").and_then(|(owner, rest)| {
            let (index, part) = rest.split_once('.')?;
            Some((owner, index.parse::<usize>().ok()?, part))
        });
        let data = |name: &str| store.tensor(name).unwrap().data.to_vec();
        match expert {
            None => {
                let dtype = info.dtype.name().to_owned();
                tensors.insert(info.name.clone(), (dtype, info.shape.clone(), data(&info.name)));
            }
            Some((owner, 0, part)) if part != "up_proj.weight" => {
                let (name, parts): (&str, &[&str]) = match part {
                    "down_proj.weight" => ("down_proj", &["down_proj"]),
                    _ => ("gate_up_proj", &["gate_proj", "up_proj"]),
                };
                let experts = 16;
                let wide = name == "down_proj";
                let all: Vec<u8> = (0..experts)
                    .flat_map(|e| parts.iter().map(move |p| format!("{owner}.experts.{e}.{p}.weight")))
                    .flat_map(|name| data(&name))
                    .collect();
                let shape = vec![experts, parts.len() * info.shape[0], info.shape[1]];
                // The upper half of an F32 is a BF16.
                let all = if wide { all.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect() } else { all };
                let dtype = if wide { "F32" } else { info.dtype.name() };
                tensors.insert(format!("{owner}.experts.{name}"), (dtype.to_owned(), shape, all));
            }
            Some(_) => {}
        }
    }
    let (mut header, mut body) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, data)) in tensors {
        let range = [body.len(), body.len() + data.len()];
        body.extend(data);
        header.insert(name, serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": range }));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let whole = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &body].concat();
    std::fs::write(to.join("model.safetensors"), whole).unwrap();
    to
}

#[test]
fn stacks_of_experts_are_taken_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, out) = (path(folder.path(), "plain"), path(folder.path(), "out"));
    let model = stacked(folder.path()).to_string_lossy().into_owned();
    for (model, out) in [(original(), &plain), (&model, &out)] {
        marlin(&["quantize", model, "--format", "gptq", "--bits", "ffn_gate=4", "--group", "64", "-o", out]).ok();
    }
    let (a, b) = (Store::open(Path::new(&plain)).unwrap(), Store::open(Path::new(&out)).unwrap());
    let names =
        |store: &Store| store.tensors().iter().map(|t| t.name.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names(&a), names(&b));
    assert!(names(&b).contains("model.layers.1.mlp.experts.3.up_proj.weight"));
    for info in a.tensors() {
        let (a, b) = (a.tensor(&info.name).unwrap(), b.tensor(&info.name).unwrap());
        if info.name.contains(".experts.") && info.name.ends_with("down_proj.weight") {
            assert_eq!((a.info.dtype.name(), b.info.dtype.name()), ("BF16", "F32"), "{}", info.name);
            assert_eq!(a.to_f32().unwrap(), b.to_f32().unwrap(), "{}", info.name);
            continue;
        }
        assert_eq!((&a.info, *a.data == *b.data), (&b.info, true), "{}", info.name);
    }
}

/// The built-in model's folder, with the bytes of `tensor` from `at` on replaced.
fn damaged(folder: &Path, tensor: &str, at: usize, bytes: &[u8]) -> PathBuf {
    let to = folder.join("damaged");
    std::fs::create_dir(&to).unwrap();
    for (name, contents) in files(&root().join("models/fable-glm4-moe-lite")) {
        std::fs::write(to.join(name), contents).unwrap();
    }
    let file = to.join("model.safetensors");
    let mut contents = std::fs::read(&file).unwrap();
    let range = marlin_checkpoint::container::Header::parse(&contents).unwrap();
    let (_, range) = range.tensors.into_iter().find(|(info, _)| info.name == tensor).unwrap();
    contents[range.start + at..][..bytes.len()].copy_from_slice(bytes);
    std::fs::write(&file, contents).unwrap();
    to
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // Row 1, column 3 of [128, 256] bf16.
    let module = "model.layers.1.self_attn.q_a_proj";
    let model = damaged(folder.path(), &format!("{module}.weight"), 2 * (256 + 3), &[0xc0, 0x7f]);
    let out = path(folder.path(), "out");
    let error = marlin(&["quantize", &model.to_string_lossy(), "--format", "int4", "-o", &out]).error(1);
    assert!(error.contains(&format!("{module}: weight [1, 3] is NaN; the checkpoint is damaged")), "{error}");
    assert!(!Path::new(&out).exists());
}

#[test]
fn verify_finds_what_was_altered() {
    let folder = tempfile::tempdir().unwrap();
    let out = path(folder.path(), "out");
    marlin(&["quantize", original(), "--format", "int8", "-o", &out]).ok();
    let at = |name: &str| Path::new(&out).join(name);
    let good = marlin(&["verify", &out, "--json"]).json();
    assert_eq!((good["wrong"].as_array().unwrap().len(), good["difference"].as_f64()), (0, Some(0.0)));
    let error = |name: &str| {
        let text = marlin(&["verify", &out]).error(1);
        assert!(text.contains("not as it was made") && text.contains(name), "{text}");
        text
    };
    let whole = std::fs::read(at("model.safetensors")).unwrap();
    let mut one_bit = whole.clone();
    let last = one_bit.len() - 1;
    one_bit[last] ^= 1;
    std::fs::write(at("model.safetensors"), &one_bit).unwrap();
    assert!(error("model.safetensors").contains("SHA-256 differs"));
    std::fs::write(at("model.safetensors"), &whole[..last]).unwrap();
    assert!(error("model.safetensors").contains(&format!("expected {} bytes, found {last}", whole.len())));
    std::fs::write(at("model.safetensors"), &whole).unwrap();
    std::fs::remove_file(at("config.json")).unwrap();
    error("config.json");
    // Files that are right, but give other logits than were written down.
    let other = path(folder.path(), "other");
    marlin(&["quantize", original(), "--format", "int4", "-o", &other]).ok();
    let fingerprint = |folder: &str| {
        let text = std::fs::read_to_string(Path::new(folder).join("fingerprint.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let mut mixed = fingerprint(&other);
    mixed["logits"] = fingerprint(&out)["logits"].clone();
    std::fs::write(Path::new(&other).join("fingerprint.json"), mixed.to_string()).unwrap();
    let mut short = mixed.clone();
    short["logits"].as_array_mut().unwrap().pop();
    std::fs::write(Path::new(&other).join("fingerprint.json"), short.to_string()).unwrap();
    let text = marlin(&["verify", &other]).error(1);
    assert!(text.contains("expected logits after each of 16 tokens, found 15 rows"), "{text}");
    std::fs::write(Path::new(&other).join("fingerprint.json"), mixed.to_string()).unwrap();
    let text = marlin(&["verify", &other]).error(1);
    assert!(text.contains("after token 0: expected"), "{text}");
    assert!(marlin(&["verify", &fable()]).error(1).contains("there is no fingerprint"));
}

/// Files cannot grow beyond what the shell allows, as on a full disk: the run fails, and continues when there is room.
#[cfg(unix)]
#[test]
fn a_write_that_fails_is_told_and_can_be_continued() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (path(folder.path(), "whole"), path(folder.path(), "out"));
    let args = |out: &str| ["quantize", original(), "--format", "int8", "-o", out].map(str::to_owned);
    let strs = |args: &'_ [String]| args.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    marlin(&args(&whole).each_ref().map(|s| s.as_str())).ok();
    let mut shell = command(&[]);
    let program = shell.get_program().to_string_lossy().into_owned();
    let limited = format!("trap '' XFSZ; ulimit -f 4096; exec {program} {}", strs(&args(&out)));
    shell = std::process::Command::new("sh");
    shell.args(["-c", &limited]);
    let error = common::finish(shell, "").error(1);
    assert!(error.contains("out.unfinished") && error.contains("large"), "{error}");
    assert!(!Path::new(&out).exists());
    let mut resumed: Vec<String> = args(&out).into();
    resumed.push("--resume".to_owned());
    marlin(&resumed.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    same(Path::new(&whole), Path::new(&out));
}

/// The value that a page has exactly beside what it shows.
fn exact(value: &serde_json::Value) -> String {
    format!("<data value=\"{:?}\">", value.as_f64().unwrap())
}

#[test]
fn a_page_compares_checkpoints_with_their_original() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let at = |name: &str| path(folder.path(), name);
    let (small, smaller, page, results) = (at("int8<b>"), at("int4"), at("page.html"), at("results.json"));
    for (format, out) in [("int8", &small), ("int4", &smaller)] {
        marlin(&["quantize", original(), "--format", format, "-o", out, "--threads", "2"]).ok();
    }
    let few = ["--text", &text, "--tokens", "200", "--threads", "2"];
    marlin(&[&["quantize", "report", original(), &small, &smaller, "-o", &page], &few[..]].concat()).ok();
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("int8&lt;b&gt;") && html.contains("</b> int4") && !html.contains("int8<b>"));
    assert!(!html.contains("http") && !html.contains(" src=") && !html.contains(" href="));

    let mut measured = String::new();
    for out in [&smaller, &small] {
        let outcome = marlin(&[&["eval", "kld", original(), out, "--json"], &few[..]].concat());
        let json = outcome.json();
        for value in [&json["mean"], &json["stderr"], &json["ppl_quantised"], &json["ppl_quantised_stderr"]] {
            assert!(html.contains(&exact(value)), "{value}");
        }
        for value in [&json["ppl_reference"], &json["top1_agreement"], &json["flips"]["mean"], &json["flips"]["tokens"]]
        {
            assert!(html.contains(&exact(value)), "{value}");
        }
        let inspected = marlin(&["inspect", out, "--json"]).json();
        assert!(html.contains(&exact(&inspected["storage"]["bits_per_weight"])));
        assert!(html.contains(&format!("<data value=\"{}\">", inspected["bytes"])));
        measured.push_str(&json.to_string());
    }

    // What was measured before makes the same page.
    std::fs::write(&results, &measured).unwrap();
    let again = at("again.html");
    let from = ["quantize", "report", original(), &small, &smaller, "--results", &results, "-o", &again];
    marlin(&from).ok();
    assert!(std::fs::read_to_string(&again).unwrap() == html);

    std::fs::write(&results, &measured[..measured.find("}{").unwrap() + 1]).unwrap();
    let missing = marlin(&from).error(1);
    assert!(missing.contains("--results: there is none of int8<b> from fable"), "{missing}");
    std::fs::write(&results, "{\"mean\": 1}").unwrap();
    let wrong = marlin(&from).error(1);
    assert!(wrong.contains("results.json: expected what eval kld --json writes"), "{wrong}");
    let nowhere = at("nowhere/page.html");
    let refused = marlin(&[&["quantize", "report", original(), &small, "-o", &nowhere], &few[..]].concat()).error(1);
    assert!(refused.contains("no file can be written there"), "{refused}");
}
