//! GPTQ (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"): weights are
//! rounded one input after another, and the error of each is made up for by the inputs that are still to come.
//!
//! With `U` upper triangular and `U^T U = H^-1`: `e = (w_i - q_i) / U_ii`, then `w_j -= e U_ij` for every `j > i`.

use marlin_cpu::linear::Rows;

use super::coded::{Coded, PANEL, Panel, each};
use super::grid::{Factor, Factors, Grid, fit};
use crate::compute::for_rows;
use crate::{Compute, Matrix, Result};

/// Inputs whose errors are carried at once to all that follow them.
const BLOCK: usize = 128;

/// The order of the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they are.
    #[default]
    Natural,
    /// Largest diagonal of the Hessian first ("act-order"), each group being consecutive inputs as before, its factors found
    /// from the original weights ("static groups"). Every format can store it.
    Activation,
    /// The same order, groups being made of inputs that follow one another in it ("desc_act"). Only formats with an index of
    /// groups can store it.
    ActivationGroups,
}

/// What [`gptq`] needs to know of the inputs, in the order in which they are quantised.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// `U^T` `[in, in]`.
    pub lower: Matrix,
    /// Weight of each input's squared error when factors are searched: `U_ii^-2`.
    pub importance: Vec<f32>,
    /// The original input at each place; `None` if they are in order.
    pub order: Option<Vec<u32>>,
    /// Whether groups are those of the original inputs.
    pub static_groups: bool,
}

impl Inputs {
    fn original(&self, place: usize) -> usize {
        self.order.as_ref().map_or(place, |order| order[place] as usize)
    }
}

/// Quantises `weight` `[out, in]`, given in the original order.
pub(crate) fn gptq<G: Grid>(
    compute: &dyn Compute,
    grid: &G,
    how: Factor,
    weight: &Matrix,
    inputs: &Inputs,
    group: usize,
) -> Result<Coded> {
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut coded = Coded::empty(rows, cols, group);
    if inputs.static_groups {
        fit_all(compute, grid, how, weight, inputs, &mut coded);
    }
    let mut work = weight.clone();
    if let Some(order) = &inputs.order {
        for_rows(compute, work.data_mut(), cols, PANEL, &|r, row| {
            row.iter_mut().zip(order).for_each(|(to, input)| *to = weight.row(r)[*input as usize]);
        });
    }
    let mut errors = vec![0.0; rows * BLOCK];
    for (first, end) in blocks(cols, group) {
        let width = end - first;
        let errors = &mut errors[..rows * width];
        let mut upper = vec![0.0; width * width];
        for (j, row) in (first..end).enumerate() {
            inputs.lower.row(row)[first..=row].iter().enumerate().for_each(|(i, v)| upper[i * width + j] = *v);
        }
        let block = Block { grid, how, inputs, group, first, end, upper: &upper };
        let work_panels = work.data_mut().chunks_mut(PANEL * cols);
        let panels = coded.panels(PANEL).zip(work_panels).zip(errors.chunks_mut(PANEL * width));
        each(compute, panels, |((panel, work), errors)| block.panel(panel, work, errors));
        if end < cols {
            let errors = Rows { data: errors, rows, cols: width, stride: width };
            let after = inputs.lower.part(end..cols, first..end);
            compute.add_products(-1.0, errors, after, &mut work.data_mut()[end..], cols)?;
        }
    }
    if let Some(order) = inputs.order.as_ref().filter(|_| !inputs.static_groups) {
        let mut index = vec![0; cols];
        order.iter().enumerate().for_each(|(place, input)| index[*input as usize] = (place / group) as u32);
        coded.index = Some(index);
    }
    Ok(coded)
}

/// Factors of groups of the original inputs, from the original weights.
fn fit_all<G: Grid>(compute: &dyn Compute, grid: &G, how: Factor, weight: &Matrix, inputs: &Inputs, coded: &mut Coded) {
    let (cols, group) = (weight.cols(), coded.group);
    let mut importance = vec![0.0; cols];
    inputs.importance.iter().enumerate().for_each(|(place, h)| importance[inputs.original(place)] = *h);
    for_rows(compute, &mut coded.factors, cols / group, PANEL, &|r, factors| {
        let groups = weight.row(r).chunks_exact(group).zip(importance.chunks_exact(group));
        factors.iter_mut().zip(groups).for_each(|(to, (w, h))| *to = fit(grid, how, w, Some(h)));
    });
}

/// Inputs that are quantised before their errors are carried to those after them.
struct Block<'a, G> {
    grid: &'a G,
    how: Factor,
    inputs: &'a Inputs,
    group: usize,
    first: usize,
    end: usize,
    /// The block's part of `U`, row after row.
    upper: &'a [f32],
}

impl<G: Grid> Block<'_, G> {
    /// Quantises the block's inputs of some rows: `work` are those rows, in the order of the inputs; `errors` become
    /// theirs, `[rows, width]`.
    fn panel(&self, panel: Panel, work: &mut [f32], errors: &mut [f32]) {
        let (cols, width) = (self.inputs.lower.cols(), self.end - self.first);
        let groups = cols / self.group;
        let rows = work.chunks_exact_mut(cols).zip(errors.chunks_exact_mut(width));
        let rows = rows.zip(panel.factors.chunks_exact_mut(groups));
        let to = panel.codes.chunks_exact_mut(cols).zip(panel.decoded.chunks_exact_mut(cols));
        for (((work, errors), factors), (codes, decoded)) in rows.zip(to) {
            self.row(work, errors, factors, codes, decoded);
        }
    }

    fn row(
        &self,
        work: &mut [f32],
        errors: &mut [f32],
        factors: &mut [Factors],
        codes: &mut [u8],
        decoded: &mut [f32],
    ) {
        let width = self.end - self.first;
        for (i, place) in (self.first..self.end).enumerate() {
            let input = self.inputs.original(place);
            let group = if self.inputs.static_groups { input } else { place } / self.group;
            if !self.inputs.static_groups && place.is_multiple_of(self.group) {
                let span = place..place + self.group;
                factors[group] = fit(self.grid, self.how, &work[span.clone()], Some(&self.inputs.importance[span]));
            }
            let value = self.grid.round(factors[group], work[place]);
            codes[input] = self.grid.code(factors[group], value);
            decoded[input] = self.grid.value(factors[group], codes[input]);
            let line = &self.upper[i * width..(i + 1) * width];
            let error = (work[place] - value) / line[i];
            errors[i] = error;
            let rest = work[place + 1..self.end].iter_mut().zip(&line[i + 1..]);
            rest.for_each(|(w, u)| *w -= error * u);
        }
    }
}

/// Inputs `[first, end)` of each block. None reaches over the beginning of a group, so that factors are found from
/// weights to which every error before them has been carried.
fn blocks(cols: usize, group: usize) -> impl Iterator<Item = (usize, usize)> {
    let size = if group <= BLOCK { BLOCK / group * group } else { group };
    (0..cols).step_by(size).flat_map(move |first| {
        let end = (first + size).min(cols);
        (first..end).step_by(BLOCK).map(move |first| (first, (first + BLOCK).min(end)))
    })
}
