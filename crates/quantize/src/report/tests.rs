use super::*;
use marlin_checkpoint::Stored;
use marlin_eval::kld::{Flips, Percentiles};

/// A matrix of 100 x 10 weights in codes of so many bits, and an embedding as large in bf16.
fn storage(bits: u32) -> Breakdown {
    let stored = |scheme, detail: &str, bits: u32| Stored {
        scheme,
        detail: detail.to_owned(),
        bits,
        group: None,
        features: vec![100, 10],
        bytes: 125 * u64::from(bits),
        tensors: Vec::new(),
    };
    let module = ("model.layers.0.mlp.up_proj".to_owned(), stored("odd", "a<b & \"c\"", bits));
    Breakdown::of(&[module, ("model.embed_tokens".to_owned(), stored("dense", "bf16", 16))])
}

fn module(name: &str, nmse: f64, proxy: Option<f64>) -> ModuleReport {
    let (method, shape) = ("int4 g<128>".to_owned(), [2, 3]);
    ModuleReport { module: name.to_owned(), method, shape, bits: 4.25, nmse, proxy, max_error: 0.5, tokens: None }
}

fn artifact(name: &str, bytes: u64, bits: u32) -> Artifact {
    let modules = vec![
        module("model.layers.0.mlp.up_proj", 0.01, Some(0.0025)),
        module("model.layers.0.mlp.down_proj", 0.03, Some(0.0055)),
        module("lm_head", 0.0004, None),
    ];
    Artifact { name: name.to_owned(), bytes, storage: storage(bits), modules }
}

fn kld(mean: f64) -> Kld {
    Kld {
        mean,
        stderr: mean / 16.0,
        percentiles: Percentiles { p50: 0.0123456, p99: 0.75, ..Percentiles::default() },
        top1_agreement: 0.9140625,
        rms_delta_p: 0.0,
        mean_delta_p: 0.0,
        ln_ppl_ratio: 2f64.ln(),
        ln_ppl_ratio_stderr: 0.015,
        ppl_reference: 38.0342,
        ppl_reference_stderr: 1.25,
        ppl_quantised: 76.0684,
        ppl_quantised_stderr: 2.625,
        flips: Some(Flips { layers: vec![0.0625], mean: 0.0625, tokens: 0.3125 }),
        tokens_scored: 7999,
        tokens: 8000,
        windows: 31,
        protocol: "sliding".to_owned(),
        context: 512,
        stride: 256,
    }
}

fn page(artifacts: Vec<(Artifact, Kld)>) -> String {
    Page::new(artifact("orig<script>", 1_234_567_890, 16), artifacts, "held'out & \"more\"".to_owned()).unwrap().html()
}

/// Dots that all but coincide have names that do not.
#[test]
fn names_of_close_points_keep_apart() {
    let close = |i: u64| (artifact(&format!("checkpoint-{i}"), 400_000_000 + i, 4), kld(0.04 + 1e-6 * i as f64));
    let html = page((0..6).map(close).chain([(artifact("far", 900_000_000, 8), kld(0.001))]).collect());
    let names = html.lines().filter(|l| l.contains("class=\"name\"") && l.contains("checkpoint-"));
    let mut heights: Vec<f64> =
        names.map(|l| l.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()).collect();
    heights.sort_by(f64::total_cmp);
    assert_eq!(heights.len(), 6);
    assert!(heights.windows(2).all(|w| w[1] - w[0] >= 13.9), "{heights:?}");
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

#[test]
fn names_are_escaped_and_nothing_is_fetched() {
    let html = page(vec![(artifact("<img src=x onerror=\"a\">", 400_000_000, 4), kld(0.04))]);
    assert!(!html.contains("<img") && !html.contains("<script") && !html.contains("a<b") && !html.contains("g<128>"));
    assert!(html.contains("&lt;img src=x onerror=&quot;a&quot;&gt;") && html.contains("orig&lt;script&gt;, quantised"));
    assert!(html.contains("held&#39;out &amp; &quot;more&quot;") && html.contains("a&lt;b &amp; &quot;c&quot;"));
    for outside in ["http", "//", "url(", "@import", " src=", " href=", "<link"] {
        let found = html.replace("&lt;img src=x", "");
        assert!(!found.contains(outside), "{outside}");
    }
}

#[test]
fn numbers_are_those_given() {
    let html = page(vec![(artifact("one", 400_000_123, 4), kld(0.04)), (artifact("two", 300_000_000, 2), kld(0.16))]);
    for shown in [
        // KL and its error, what they are exactly and as they are shown.
        "<data value=\"0.04\">0.0400</data> ± <data value=\"0.0025\">0.0025</data>",
        "<data value=\"0.16\">0.160</data> ± <data value=\"0.01\">0.010</data>",
        "median 0.01235, 99th percentile 0.7500",
        // exp(ln 2) - 1, and 2 x 0.015.
        "<data value=\"76.0684\">76.07</data> ± <data value=\"2.625\">2.62</data></span> <small>+100.00 % ± 3.00 %",
        "<data value=\"38.0342\">38.03</data> ± <data value=\"1.25\">1.25</data>",
        "<data value=\"0.9140625\">91.41 %</data>",
        "<data value=\"0.0625\">6.25 %</data> <small><data value=\"0.3125\">31.25 %</data> of tokens",
        "<data value=\"400000123\">400.0 MB</data> <small>400,000,123 bytes, 32.4 % of the original",
        "<data value=\"1234567890\">1.23 GB</data> <small>1,234,567,890 bytes</small>",
        // 4 and 16 bits in equal parts; 4 without the embedding.
        "<data value=\"10.0\">10.000</data> <small><data value=\"4.0\">4.000</data> without embedding",
        "dense bf16 <small>50.0 %</small>",
        "7,999 positions of 8,000 tokens, sliding protocol, context 512, stride 256",
        // Means over layer 0: nmse 0.02, proxy 0.004; the head has no proxy.
        "<title>0: weights 14.14 %</title>",
        "<title>0: outputs 6.325 %</title>",
        "<title>head: weights 2.000 %</title>",
        "<title>2 bits: 50.00 % of the weights</title>",
    ] {
        assert!(html.contains(shown), "{shown} in {html}");
    }
    assert!(!html.contains("head: outputs"));
    for name in ["one", "two"] {
        assert_eq!(count(&html, &format!("</b> {name}")), 3, "table, layers, modules");
    }
}

/// B is larger and worse than A; C is smaller and worse; D is the original again.
#[test]
fn the_front_leaves_out_what_is_beaten() {
    let artifacts = [("A", 300, 0.02), ("B", 400, 0.03), ("C", 200, 0.3), ("D", 500, 0.0)];
    let html = page(artifacts.map(|(name, bytes, kl)| (artifact(name, 1_000_000 * bytes, 4), kld(kl))).to_vec());
    for (class, name) in [("on", "A"), ("off", "B"), ("on", "C")] {
        let circle = html.lines().find(|l| l.contains("<circle") && l.contains(&format!("<title>{name}:"))).unwrap();
        assert!(circle.contains(&format!("class=\"{class}\"")), "{circle}");
    }
    // Two points and the corner between them.
    let front = html.lines().find(|l| l.contains("<polyline")).unwrap();
    assert_eq!(count(front, ","), 3, "{front}");
    assert!(html.contains("not in the chart: D."));
    assert!(!html.contains("NaN") && !html.contains("inf"));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let original = || artifact("original", 900, 16);
    let none = Page::new(original(), Vec::new(), "text".to_owned()).unwrap_err().to_string();
    assert_eq!(none, "artifacts: expected at least one, found none");
    let other = Kld { context: 2048, ..kld(0.1) };
    let two = vec![(artifact("a", 500, 4), kld(0.1)), (artifact("b", 400, 3), other)];
    let refused = Page::new(original(), two, "text".to_owned()).unwrap_err().to_string();
    assert!(refused.contains("context 512") && refused.contains("context 2048, stride 256 for b"), "{refused}");
}

#[test]
fn one_without_a_report_of_its_modules_is_said_to_be() {
    let bare = Artifact { modules: Vec::new(), ..artifact("bare", 400, 4) };
    let html = page(vec![(bare, Kld { flips: None, ..kld(0.1) })]);
    assert!(html.contains("Without a report of its modules: bare.") && html.contains("No checkpoint has a report"));
    assert!(!html.contains("NaN") && !html.contains("inf"));
}
