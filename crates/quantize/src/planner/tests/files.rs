use super::super::{Limits, Plan, Series, Summary, chart, pareto, plan, uniform};
use super::{experts, module};

fn named(modules: &[super::Module], bits: &[u32]) -> Plan {
    Plan::new(modules.iter().map(|m| m.name.clone()).zip(bits.iter().copied()).collect())
}

#[test]
fn a_plan_comes_back() {
    let mut modules = vec![module("model.layers.0.self_attn.q_proj", 64, 3.0, &[2, 3, 4])];
    modules.extend(experts(2, 3, &[2, 3, 4], 2));
    modules.push(module("lm_head", 640, 9.0, &[6]));
    let limits = Limits { budget: 3 * 96 * 18 + 4 * 64 + 6 * 640, ..Limits::default() };
    let planned = plan(&modules, &limits).unwrap();
    let mut made = named(&modules, &planned.bits);
    made.settings.insert("format".to_owned(), "exl3".to_owned());
    let summary = Summary::new(&modules, &planned.bits, Some(planned.bound));
    let text = made.text(&summary.to_string());
    let read = Plan::parse("a.plan", &text).unwrap();
    assert_eq!(read, made);
    assert_eq!(read.bits_of(&modules).unwrap(), planned.bits);
    assert_eq!(read.text(&summary.to_string()), text);
    // An expert is a line.
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    assert_eq!(lines.len(), 1 + 1 + 1 + 6 + 1);
    assert_eq!((lines[0], lines[1]), ("marlin plan 1", "set format exl3"));
    assert!(lines[3].starts_with("model.layers.0.mlp.experts.0 gate_proj=") && lines[3].contains(" down_proj="));
    assert!(text.contains("# predicted damage") && text.contains("# experts with tuples"));
}

#[test]
fn what_is_refused_names_the_line() {
    let modules = [module("a.q_proj", 8, 1.0, &[2, 4]), module("a.experts.0.up_proj", 8, 1.0, &[3])];
    let good = "# of a person\n\nmarlin plan 1\nset codebook mul1 # why not\na.q_proj 4\na.experts.0  up_proj=3\n";
    let read = Plan::parse("p", good).unwrap();
    assert_eq!(read.bits_of(&modules).unwrap(), [4, 3]);
    assert_eq!(read.settings["codebook"], "mul1");
    let refused = |from: &str, to: &str| {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good);
        Plan::parse("p", &text).and_then(|p| p.bits_of(&modules)).unwrap_err().to_string()
    };
    for (from, to, expected) in [
        ("plan 1", "plan 2", "p:3: expected \"marlin plan 1\", found \"marlin plan 2\""),
        ("a.q_proj 4", "a.k_proj 4", "p:5: a.k_proj is no module of the model"),
        ("a.q_proj 4", "a.q_proj 3", "p:5: a.q_proj can have [2, 4] bits, found 3"),
        ("a.q_proj 4", "a.q_proj four", "p:5: expected a number of bits, found \"four\""),
        ("a.q_proj 4", "a.q_proj -4", "p:5: expected a number of bits, found \"-4\""),
        ("a.q_proj 4", "a.q_proj", "p:5: expected bits after \"a.q_proj\", found nothing"),
        ("a.q_proj 4", "a.q_proj 4 4", "p:5: expected \"MODULE=BITS\", found \"4\""),
        ("up_proj=3", "up_proj=3 up_proj=3", "p:6: a.experts.0.up_proj has its bits on line 6 already"),
        ("up_proj=3", "up_proj=9", "p:6: a.experts.0.up_proj can have [3] bits, found 9"),
        ("a.q_proj 4\n", "", "a.q_proj: has no bits in the plan p"),
        ("set codebook mul1", "set codebook", "p:4: expected \"set KEY VALUE\""),
        ("a.q_proj 4", "set codebook mcg", "p:5: setting \"codebook\" is made twice"),
    ] {
        let found = refused(from, to);
        assert!(found.starts_with(expected), "{found}");
    }
    assert!(Plan::parse("p", "# nothing\n").unwrap_err().to_string().contains("found an empty file"));
}

#[test]
fn what_a_summary_says() {
    let modules = [
        module("model.layers.0.mlp.experts.0.gate_proj", 100, 16.0, &[2, 3, 4]),
        module("model.layers.0.mlp.experts.0.up_proj", 100, 16.0, &[2, 3, 4]),
        module("model.layers.1.self_attn.q_proj", 200, 64.0, &[2, 3, 4]),
        module("lm_head", 50, 0.0, &[16]),
    ];
    let summary = Summary::new(&modules, &[2, 3, 4, 16], None);
    assert_eq!((summary.weights, summary.stored), (450, 200 + 300 + 800 + 800));
    assert_eq!(summary.damage, 1.0 + 0.25 + 0.25);
    assert_eq!(summary.bits[&2], (1, 100));
    assert_eq!(summary.tuples, [(vec![2, 3], 1)]);
    assert_eq!((summary.layers[&0], summary.layers[&1]), ((200, 500), (200, 800)));
    // 1300 bits for 400 weights: three for each, and one more for one of the first two.
    let same = uniform(&modules, 2100).unwrap();
    assert_eq!(same.iter().filter(|b| **b == 4).count(), 1);
    assert_eq!((same[2], same[3], same.iter().sum::<u32>()), (3, 16, 26));
    assert_eq!(summary.uniform, Some(0.25 + 0.0625 + 1.0));
    assert_eq!(uniform(&modules, 1599), None);
    assert_eq!(uniform(&modules, 1600).unwrap(), [2, 2, 2, 16]);
    assert_eq!(uniform(&modules, 1 << 20).unwrap(), [4, 4, 4, 16]);
}

#[test]
fn budgets_and_their_chart() {
    let modules = experts(2, 8, &[2, 3, 4, 6], 4);
    let points = pareto(&modules, &Limits::default(), &[2.0, 2.5, 3.0, 3.5, 6.0]).unwrap();
    assert!(points.windows(2).all(|p| p[1].damage < p[0].damage && p[1].bits_per_weight > p[0].bits_per_weight));
    for p in &points {
        assert!(p.damage <= p.uniform.unwrap() * (1.0 + 1e-12));
    }
    assert_eq!(points[0].damage, points[0].uniform.unwrap());
    assert!(points[2].damage < 0.8 * points[2].uniform.unwrap());
    assert!(pareto(&modules, &Limits::default(), &[1.9]).is_err());
    let line = |name: &str, points: Vec<(f64, f64)>| Series { name: name.to_owned(), points };
    let planned = points.iter().map(|p| (p.bits_per_weight, p.damage)).collect();
    let series = [line("planned", planned), line("a < b & c", vec![(2.0, 0.5), (3.0, 0.0), (4.0, f64::NAN)])];
    let svg = chart("Damage by size", "stored bits a weight", "predicted damage", &series);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("a &lt; b &amp; c") && svg.contains("stored bits a weight") && !svg.contains("NaN"));
    assert_eq!(svg.matches("<circle").count(), 6);
    // Every element is closed, and what is written lies within the picture.
    assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    for value in svg.split("cx=\"").skip(1).map(|rest| rest.split('"').next().unwrap().parse::<f64>().unwrap()) {
        assert!((0.0..=720.0).contains(&value));
    }
    assert!(chart("t", "x", "y", &[]).ends_with("</svg>\n"));
}
