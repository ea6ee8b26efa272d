//! The one place where verdicts come from.

use netpol_policy::explain::{self, Explanation};
use netpol_policy::reference::{ConnectionError, End};
use netpol_policy::world::World;

use crate::args::AskedPort;

/// Answers questions about one world.
pub(crate) struct Judge<'w> {
    world: &'w World,
}

impl<'w> Judge<'w> {
    pub(crate) fn new(world: &'w World) -> Self {
        Self { world }
    }

    pub(crate) fn explain(&self, from: &End, to: &End, asked: AskedPort) -> Result<Explanation, ConnectionError> {
        explain::explain(self.world, from, to, asked.protocol, asked.port)
    }
}
