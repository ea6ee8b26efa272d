//! Services, for whoever explains.

use std::collections::BTreeSet;

use crate::model::{Backend, ServiceKey};
use crate::world::{Owner, World};

/// The Services that a backend is behind, and the ports at which they are reached themselves.
pub(super) fn before(world: &World, backend: Backend, protocol: u8) -> BTreeSet<(ServiceKey, u16)> {
    let frontends = world.frontends_towards(backend.address).into_iter();
    let leading =
        frontends.filter(|frontend| frontend.protocol == protocol && world.backends(frontend).contains(&backend));
    let owners = leading.flat_map(|frontend| world.owners(&frontend).iter().map(move |owner| (owner, frontend.port)));
    let services = owners.filter_map(|(owner, port)| match owner {
        Owner::Service(key) => Some((key.clone(), port)),
        Owner::HostPort(_) => None,
    });
    services.collect()
}
