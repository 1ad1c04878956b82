//! The order of a projection's rows.

use crate::{Error, Result, Tensor};

/// How a file orders the rows of a projection to queries or keys.
///
/// Llama's files rotate neighbours, transformers the halves of a head: row `2 i + s` of a head of `d` rows in the file is
/// row `s d / 2 + i` in transformers (s = 0, 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadOrder {
    /// As transformers.
    Plain,
    /// Pairs that rotate together are neighbours.
    Paired {
        /// Rows of a head, an even number.
        head: usize,
    },
}

impl HeadOrder {
    /// Refuses rows that are no whole heads.
    pub fn check(self, name: &str, rows: usize) -> Result<()> {
        match self {
            Self::Paired { head } if !rows.is_multiple_of(head) => {
                Err(Error::invalid(format!("tensor {name:?}"), format!("{rows} rows are no whole heads of {head}")))
            }
            _ => Ok(()),
        }
    }

    /// The file's row for `row` of transformers.
    pub fn source(self, row: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Paired { head } => {
                let (in_head, half) = (row % head, head / 2);
                row - in_head + 2 * (in_head % half) + in_head / half
            }
        }
    }

    /// The same tensor in the order of transformers: a copy if that is another.
    pub fn reordered(self, tensor: Tensor) -> Result<Tensor> {
        if self == Self::Plain {
            return Ok(tensor);
        }
        let rows = tensor.info.shape.first().copied().unwrap_or(0);
        self.check(&tensor.info.name, rows)?;
        let stride = tensor.data.len() / rows.max(1);
        let mut data = Vec::with_capacity(tensor.data.len());
        for row in 0..rows {
            data.extend_from_slice(&tensor.data[self.source(row) * stride..][..stride]);
        }
        Ok(Tensor { info: tensor.info, data: data.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The converter's permutation: view as (heads, 2, d / 2), swap the last two.
    #[test]
    fn pairs_become_halves() {
        let order = HeadOrder::Paired { head: 6 };
        let rows: Vec<usize> = (0..12).map(|row| order.source(row)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert!(order.check("t", 13).is_err());
    }
}
