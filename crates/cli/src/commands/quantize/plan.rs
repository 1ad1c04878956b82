//! Bits for each module: plans made, and plans applied.

use super::apply::{Inputs, make};
use super::damages::Damages;
use super::measure::{Measuring, Subject};
use super::{ApplyArgs, PlanArgs, RecipeArgs, Work};
use crate::args::EngineArgs;
use crate::error::{Failure, Result};
use crate::progress::Bar;
use crate::{device, interrupt, model, output};
use clap::ValueEnum;
use marlin_checkpoint::Checkpoint;
use marlin_quantize::planner::{Limits, Module, Plan, Series, Summary, chart, pareto, plan, uniform};
use marlin_quantize::{Bits, Probe, Progress, Recipe, Stats, Target, check_output, probe};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Tokens of the calibration text that damages are measured on.
const MEASURED: usize = 4096;
/// Budgets of a sweep.
const SWEEP: usize = 17;

pub fn run(args: &PlanArgs) -> Result<()> {
    let checkpoint = model::open(&args.model)?;
    let stats = Stats::open(&args.stats)?;
    if let Some(path) = std::iter::once(&args.output).chain(&args.pareto).find(|path| path.exists()) {
        let path = path.display();
        return Err(Failure::text(format!("{path}: is there already and will not be overwritten; name another file")));
    }
    let recipe = args.recipe.recipe(&Inputs::Stats(stats.clone()))?;
    let bits = whole(&recipe)?;
    let usual = around(bits, recipe.target);
    let (least, most) = (args.min_bits.unwrap_or(usual.0), args.max_bits.unwrap_or(usual.1));
    let tried = Probe { min_bits: least, max_bits: most, rows: args.probe_rows };
    let samples = args.measuring.samples(&checkpoint)?;
    let subject = Subject { checkpoint: &checkpoint, stats: &stats, engine: &args.engine, beside: &args.output };
    let bench = samples.as_ref().map(|samples| Measuring::new(subject, samples)).transpose()?;
    let key = json!({
        "model": checkpoint.name,
        "identity": stats.about.model_identity,
        "text": stats.about.text,
        "settings": format!("{:?}", Recipe { bits: recipe.bits.roles(), ..recipe.clone() }),
        "tried": format!("{tried:?}"),
        "measured": samples.as_ref().map(|samples| &samples.hash),
    });
    let Damages { plain, modules } = Damages::kept(args.damages.as_deref(), key, || {
        let plain = tries(&checkpoint, &stats, &recipe, tried, &args.engine)?;
        let modules = bench.as_ref().map(|bench| bench.sensitivities(&plain)).transpose()?;
        Ok(Damages { modules: modules.unwrap_or_else(|| plain.clone()), plain })
    })?;
    let limits = Limits {
        budget: budget(&modules, bits)?,
        max_tuples: args.max_tuples,
        equal_gate_up: args.equal_gate_up,
        equal_experts: recipe.target.stacks(),
        ..Limits::default()
    };
    let (modules, mut planned) = args.measuring.plan(bench.as_ref(), &recipe, modules, &limits)?;
    drop(bench);
    if args.uniform {
        if recipe.target.stacks() && bits.fract() != 0.0 {
            let name = recipe.target.name();
            return Err(Failure::text(format!(
                "--uniform: {name} keeps all experts of a layer in one stack, over which bits cannot be spread; give whole bits"
            )));
        }
        planned.bits = uniform(&modules, limits.budget)
            .ok_or_else(|| Failure::text("--uniform: no equal bits for all modules fit this size"))?;
    }
    let bound = (!args.uniform).then_some(planned.bound);
    let summary = Summary::new(&modules, &planned.bits, bound);
    let plan = lines(&checkpoint, &recipe, &modules, planned.bits, &args.recipe)?;
    let drawn = match &args.pareto {
        None => None,
        Some(path) => Some((path, pareto(&modules, &limits, &sweep(&modules)?)?)),
    };
    write(&args.output, &plan.text(&summary.to_string()))?;
    if let Some((path, points)) = drawn {
        let series = [
            Series { name: "mixed".to_owned(), points: points.iter().map(|p| (p.bits_per_weight, p.damage)).collect() },
            Series {
                name: "uniform".to_owned(),
                points: points.iter().filter_map(|p| Some((p.bits_per_weight, p.uniform?))).collect(),
            },
        ];
        let title = format!("{} as {}", checkpoint.name, recipe.target.name());
        write(path, &chart(&title, "stored bits of a weight", "predicted damage", &series))?;
    }
    output::print(&format!("{}: for {}\n{summary}", args.output.display(), checkpoint.name))?;
    args.measuring.check(subject, &recipe, bits.floor() as u32, [&modules, &plain])
}

pub fn apply(args: &ApplyArgs) -> Result<()> {
    let checkpoint = model::open(&args.model)?;
    let name = args.plan.display().to_string();
    let text = std::fs::read_to_string(&args.plan).map_err(|e| Failure::text(format!("{name}: {e}")))?;
    let plan = Plan::parse(&name, &text)?;
    check_output(&args.work.output, args.work.resume)?;
    let inputs = Inputs::read(&args.work, &checkpoint)?;
    let recipe = settings(&plan, &name)?.recipe(&inputs)?;
    follow(&checkpoint, &plan, &recipe, &inputs, &args.work, &name)
}

/// Quantises as a plan says.
fn follow(
    checkpoint: &Checkpoint,
    plan: &Plan,
    recipe: &Recipe,
    inputs: &Inputs,
    work: &Work,
    name: &str,
) -> Result<()> {
    let of: BTreeMap<&str, u32> = plan.bits.iter().map(|(module, bits)| (module.as_str(), *bits)).collect();
    let choice = recipe.choose(checkpoint, &|module| of.get(module).map(|bits| f64::from(*bits)))?;
    let chosen = choice.bits();
    // A plan may leave a module as it is, by 16 bits.
    if let Some((module, bits)) = plan.bits.iter().find(|(m, bits)| *bits < 16 && !chosen.contains_key(m.as_str())) {
        return Err(Failure::text(format!(
            "{name}: {module} is to have {bits} bits, but {} has no such module that can be quantised",
            checkpoint.name
        )));
    }
    if let Some(module) = recipe.modules(checkpoint)?.iter().find(|module| !of.contains_key(module.as_str())) {
        return Err(Failure::text(format!(
            "{name}: {module} has no bits; add a line for it, with 16 to keep it as it is"
        )));
    }
    let lines: Vec<String> = plan.text("").lines().map(str::to_owned).collect();
    let how = json!({ "format": recipe.target.name(), "plan": lines, "exact": work.engine.exact });
    make(checkpoint, &choice, inputs, work, how)
}

/// One command for bits that are no whole number: calibrates, measures, plans, and quantises. What was calibrated is kept beside the
/// output until it is complete.
pub fn mixed(checkpoint: &Checkpoint, args: &RecipeArgs, inputs: Inputs, work: &Work) -> Result<()> {
    // What cannot succeed is refused before the text is read through.
    let bits = whole(&args.recipe(&inputs)?)?;
    let (folder, stats, text) = match inputs {
        Inputs::None => {
            return Err(Failure::text(
                "bits that are no whole number are planned by what a text shows: give --text or --stats",
            ));
        }
        Inputs::Stats(stats) => (None, stats, None),
        Inputs::Text(samples) => {
            let name = work.output.file_name().unwrap_or_default().to_string_lossy();
            let folder = work.output.with_file_name(format!("{name}.stats"));
            let backend = device::cpu(&work.engine)?;
            let watch = interrupt::watch();
            let mut bar = Bar::items("calibrating");
            let mut hear = |step: &Progress| {
                bar.say(&step.what);
                bar.set(step.done, step.total);
                !watch.pressed()
            };
            let experts = work.windows.experts();
            let compute = backend.cpu();
            let stats = marlin_quantize::calibrate(
                &backend,
                compute,
                checkpoint,
                &samples,
                experts,
                &folder,
                work.resume,
                &mut hear,
            )?;
            (Some(folder), stats, Some(samples))
        }
    };
    let inputs = Inputs::Stats(stats.clone());
    let recipe = args.recipe(&inputs)?;
    let (least, most) = around(bits, recipe.target);
    let tried = Probe { min_bits: least, max_bits: most, rows: 128 };
    let modules = tries(checkpoint, &stats, &recipe, tried, &work.engine)?;
    let limits = Limits { budget: budget(&modules, bits)?, equal_experts: recipe.target.stacks(), ..Limits::default() };
    let modules = match &text {
        None => modules,
        Some(samples) => {
            let subject = Subject { checkpoint, stats: &stats, engine: &work.engine, beside: &work.output };
            Measuring::new(subject, &samples.some(MEASURED))?.sensitivities(&modules)?
        }
    };
    let planned = plan(&modules, &limits)?;
    output::note(Summary::new(&modules, &planned.bits, Some(planned.bound)).to_string().trim_end());
    let plan = lines(checkpoint, &recipe, &modules, planned.bits, args)?;
    // The plan goes by what the original's layers see, the weights by what quantised ones do.
    let inputs = text.filter(|_| work.sequential).map_or(inputs, Inputs::Text);
    follow(checkpoint, &plan, &recipe, &inputs, work, "the plan")?;
    if let Some(folder) = folder {
        std::fs::remove_dir_all(&folder).map_err(|e| Failure::text(format!("{}: {e}", folder.display())))?;
    }
    Ok(())
}

/// The one number of bits that is asked for, which lies at or between two that the format has.
fn whole(recipe: &Recipe) -> Result<f64> {
    let Some(bits) = recipe.bits.all() else {
        return Err(Failure::text("--bits: a plan needs one number of bits for all modules, such as 3.5"));
    };
    let (name, widths) = (recipe.target.name(), recipe.target.widths());
    if bits > 8.0 {
        return Err(Failure::text(format!("--bits: expected at most 8 for a plan, found {bits}")));
    }
    match [bits.floor(), bits.ceil()].into_iter().find(|near| !widths.contains(&(*near as u32))) {
        None => Ok(bits),
        Some(near) => Err(Failure::text(format!(
            "--bits {bits}: modules would have {} or {} bits, but {name} has no {near}, only {widths:?}",
            bits.floor(),
            bits.ceil()
        ))),
    }
}

/// Least and most bits that are tried for an average of `bits` unless others are named.
fn around(bits: f64, target: Target) -> (u32, u32) {
    let widths = target.widths();
    let (least, most) = (widths.first().copied().unwrap_or(1), widths.last().copied().unwrap_or(8));
    ((bits.floor() as u32).saturating_sub(1).max(least), (bits.ceil() as u32 + 2).min(most))
}

fn tries(
    checkpoint: &Checkpoint,
    stats: &Stats,
    recipe: &Recipe,
    tried: Probe,
    engine: &EngineArgs,
) -> Result<Vec<Module>> {
    let backend = device::cpu(engine)?;
    let watch = interrupt::watch();
    let mut bar = Bar::items("trying");
    Ok(probe(checkpoint, stats, recipe, tried, backend.cpu(), &mut |step: &Progress| {
        bar.say(&step.what);
        bar.set(step.done, step.total);
        !watch.pressed()
    })?)
}

fn weights(modules: &[Module]) -> u64 {
    modules.iter().map(|m| m.weights).sum()
}

/// What all modules take at `bits`, between whole bits in proportion: the size of uniform bits.
fn budget(modules: &[Module], bits: f64) -> Result<u64> {
    between(modules, bits.floor() as u32, bits.ceil() as u32, bits.fract())
}

/// Budgets of a sweep over the bits that all modules have, in stored bits of a weight.
fn sweep(modules: &[Module]) -> Result<Vec<f64>> {
    let mut free = modules.iter().filter(|module| !module.is_protected());
    let mut common: Vec<u32> =
        free.next().map_or_else(|| vec![0], |module| module.choices.iter().map(|c| c.bits).collect());
    common.retain(|bits| free.clone().all(|module| module.choices.iter().any(|c| c.bits == *bits)));
    common.sort_unstable();
    let steps = common.len().saturating_sub(1);
    let budgets = (0..SWEEP).filter(|i| *i == 0 || steps > 0).map(|i| {
        let at = (i * steps) as f64 / (SWEEP - 1) as f64;
        let bits = |place: f64| common.get(place as usize).copied().unwrap_or(0);
        let stored = between(modules, bits(at.floor()), bits(at.ceil()), at.fract())?;
        // Half a bit more, which is not lost when the product with the weights is rounded down.
        Ok((stored as f64 + 0.5) / weights(modules).max(1) as f64)
    });
    budgets.collect()
}

/// What all modules take `part` of the way from `low` to `high` bits.
fn between(modules: &[Module], low: u32, high: u32, part: f64) -> Result<u64> {
    let mut sum = 0.0;
    for module in modules {
        let at = |bits: u32| module.choices.iter().find(|c| c.bits == bits).map(|c| c.stored as f64);
        let only = module.choices.first().filter(|_| module.is_protected()).map(|c| c.stored as f64);
        let between = at(low).zip(at(high)).map(|(a, b)| a + part * (b - a));
        sum += only.or(between).ok_or_else(|| {
            let of: Vec<u32> = module.choices.iter().map(|c| c.bits).collect();
            Failure::text(format!(
                "{} is tried at {of:?} bits only, not at {low} and {high} (--min-bits, --max-bits)",
                module.name
            ))
        })?;
    }
    Ok(sum.floor() as u64)
}

/// The file of a plan that gives `modules` these bits.
fn lines(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    modules: &[Module],
    bits: Vec<u32>,
    args: &RecipeArgs,
) -> Result<Plan> {
    let mut bits: BTreeMap<&str, u32> = modules.iter().map(|m| m.name.as_str()).zip(bits).collect();
    // Modules that are not planned for are kept as they are, and the plan says so.
    let lines = recipe.modules(checkpoint)?.into_iter().map(|module| {
        let own = bits.remove(module.as_str()).unwrap_or(16);
        (module, own)
    });
    let mut made = Plan::new(lines.collect());
    made.settings.insert("format".to_owned(), args.format.name().to_owned());
    if let Some(group) = args.group {
        made.settings.insert("group".to_owned(), group.to_string());
    }
    if args.asymmetric {
        made.settings.insert("asymmetric".to_owned(), "true".to_owned());
    }
    if let Some(block) = args.rotate {
        made.settings.insert("rotate".to_owned(), block.to_string());
    }
    if let Some(rounding) = args.rounding {
        made.settings.insert("rounding".to_owned(), word(rounding));
    }
    made.settings.insert("order".to_owned(), word(args.order));
    made.settings.insert("damping".to_owned(), args.damping.to_string());
    Ok(made)
}

/// A value as the command line has it.
fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|known| known.get_name().to_owned()).unwrap_or_default()
}

/// The recipe that a plan's settings make.
fn settings(plan: &Plan, name: &str) -> Result<RecipeArgs> {
    let wrong = |key: &str, value: &str| Failure::text(format!("{name}: set {key}: {value:?} makes no sense"));
    let mut args = RecipeArgs::usual(Target::Exl3, Some(Bits::default()));
    for (key, value) in &plan.settings {
        match key.as_str() {
            "format" => {
                let found = Target::ALL.into_iter().find(|t| t.name() == value);
                args.format = found.ok_or_else(|| wrong(key, value))?;
            }
            "group" => args.group = Some(value.parse().map_err(|_| wrong(key, value))?),
            "asymmetric" => args.asymmetric = value.parse().map_err(|_| wrong(key, value))?,
            "rotate" => args.rotate = Some(value.parse().map_err(|_| wrong(key, value))?),
            "rounding" => args.rounding = Some(ValueEnum::from_str(value, false).map_err(|_| wrong(key, value))?),
            "order" => args.order = ValueEnum::from_str(value, false).map_err(|_| wrong(key, value))?,
            "damping" => args.damping = value.parse().map_err(|_| wrong(key, value))?,
            _ => return Err(Failure::text(format!("{name}: there is no setting {key:?}"))),
        }
    }
    Ok(args)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Failure::text(format!("{}: {e}", path.display())))
}
