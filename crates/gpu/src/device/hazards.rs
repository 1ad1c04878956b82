//! Where barriers are needed between kernels that may otherwise run at the same time.

use super::{Binding, Handle};
use crate::source::Access;
use std::collections::HashMap;

/// Which buffers the launches since the last barrier have touched. For queues that run launches concurrently.
#[derive(Debug, Default)]
pub struct Hazards {
    /// Buffers touched, and whether they were written.
    touched: HashMap<Handle, bool>,
}

impl Hazards {
    /// Whether a launch on `bindings` must wait for one before it: it reads what was written or writes what was touched
    /// since the last barrier. Notes it; if it must wait, as the first after a barrier.
    pub fn next(&mut self, bindings: &[Binding]) -> bool {
        let writes = |b: &Binding| b.access == Access::Write;
        let wait = bindings.iter().any(|b| self.touched.get(&b.handle).is_some_and(|written| *written || writes(b)));
        if wait {
            self.touched.clear();
        }
        for b in bindings {
            *self.touched.entry(b.handle).or_default() |= writes(b);
        }
        wait
    }

    /// Forgets everything: a barrier, or a new command buffer that begins after the last.
    pub fn clear(&mut self) {
        self.touched.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(handle: u64, access: Access) -> Binding {
        Binding { handle: Handle(handle), offset: 0, bytes: 4, access }
    }

    #[test]
    fn only_dependent_launches_wait() {
        use Access::{Read, Write};
        let mut hazards = Hazards::default();
        assert!(!hazards.next(&[bind(1, Read), bind(2, Write)]));
        assert!(!hazards.next(&[bind(1, Read), bind(3, Write)]), "both read 1");
        assert!(hazards.next(&[bind(2, Read), bind(4, Write)]), "2 was written");
        assert!(!hazards.next(&[bind(3, Read), bind(5, Write)]), "3 was written before the barrier");
        assert!(hazards.next(&[bind(6, Read), bind(3, Write)]), "3 was read since");
        assert!(hazards.next(&[bind(3, Write)]), "3 was written since");
        hazards.clear();
        assert!(!hazards.next(&[bind(3, Write)]));
    }
}
