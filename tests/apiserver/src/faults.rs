//! Faults that a test injects into requests.

use std::time::Duration;

use crate::resource::{Resource, Verb};

/// The effect of a fault on a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect(pub(crate) EffectKind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EffectKind {
    Status { code: u16, retry_after: Option<u32> },
    Delay(Duration),
    Cut,
    CutInTheMiddle,
    Hang,
    Empty,
    Garbage,
}

impl Effect {
    /// Responds with a `Status` of this code. With code 410, the response is the same as for an expired
    /// `resourceVersion`.
    pub const fn status(code: u16) -> Self {
        Self(EffectKind::Status { code, retry_after: None })
    }

    /// Adds the header `Retry-After`, in seconds, to the response of `Effect::status`. Returns other effects unchanged.
    #[must_use]
    pub const fn retry_after(self, seconds: u32) -> Self {
        match self.0 {
            EffectKind::Status { code, .. } => Self(EffectKind::Status { code, retry_after: Some(seconds) }),
            EffectKind::Delay(_)
            | EffectKind::Cut
            | EffectKind::CutInTheMiddle
            | EffectKind::Hang
            | EffectKind::Empty
            | EffectKind::Garbage => self,
        }
    }

    /// Responds normally after a delay.
    pub const fn delay(time: Duration) -> Self {
        Self(EffectKind::Delay(time))
    }

    /// Closes the connection without a response.
    pub const fn cut() -> Self {
        Self(EffectKind::Cut)
    }

    /// Closes the connection in the middle of the response: after half of a list, or half of a watch's first event.
    pub const fn cut_in_the_middle() -> Self {
        Self(EffectKind::CutInTheMiddle)
    }

    /// Sends only the headers of a response with status 200. The connection stays open, but no body follows.
    pub const fn hang() -> Self {
        Self(EffectKind::Hang)
    }

    /// Responds with status 200 and an empty body. For a client, this is a watch that ends immediately.
    pub const fn empty() -> Self {
        Self(EffectKind::Empty)
    }

    /// Responds with status 200 and a body that is not JSON.
    pub const fn garbage() -> Self {
        Self(EffectKind::Garbage)
    }
}

/// A fault to inject. Without filters, the fault applies to all requests until it is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    effect: Effect,
    verb: Option<Verb>,
    resource: Option<Resource>,
    page: Option<usize>,
    remaining: Option<usize>,
}

/// Identifies a fault, to remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(u64);

impl Fault {
    /// Creates a fault with this effect.
    pub const fn new(effect: Effect) -> Self {
        Self { effect, verb: None, resource: None, page: None, remaining: None }
    }

    /// Applies only to requests with this verb.
    #[must_use]
    pub const fn verb(mut self, verb: Verb) -> Self {
        self.verb = Some(verb);
        self
    }

    /// Applies only to requests for this resource.
    #[must_use]
    pub const fn resource(mut self, resource: Resource) -> Self {
        self.resource = Some(resource);
        self
    }

    /// Applies only to this page of a list; the first page is 1.
    #[must_use]
    pub const fn page(mut self, page: usize) -> Self {
        self.page = Some(page);
        self
    }

    /// Applies only to this number of requests.
    #[must_use]
    pub const fn times(mut self, times: usize) -> Self {
        self.remaining = Some(times);
        self
    }
}

/// The active faults.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    last_id: u64,
    /// Oldest first.
    faults: Vec<(FaultId, Fault)>,
}

impl Faults {
    pub(crate) fn inject(&mut self, fault: Fault) -> FaultId {
        self.last_id += 1;
        self.faults.push((FaultId(self.last_id), fault));
        FaultId(self.last_id)
    }

    pub(crate) fn withdraw(&mut self, id: FaultId) {
        self.faults.retain(|(one, _)| *one != id);
    }

    pub(crate) fn clear(&mut self) {
        self.faults.clear();
    }

    /// Returns the effect of the oldest fault that matches a request, and subtracts one from the fault's remaining
    /// requests.
    pub(crate) fn next_effect(&mut self, verb: Verb, resource: Resource, page: usize) -> Option<Effect> {
        let matches = |fault: &Fault| {
            fault.verb.is_none_or(|one| one == verb)
                && fault.resource.is_none_or(|one| one == resource)
                && fault.page.is_none_or(|one| verb == Verb::List && one == page)
                && fault.remaining != Some(0)
        };
        let (_, fault) = self.faults.iter_mut().find(|(_, fault)| matches(fault))?;
        fault.remaining = fault.remaining.map(|remaining| remaining - 1);
        Some(fault.effect.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_applies_only_to_matching_requests_and_the_given_number_of_times() {
        let mut faults = Faults::default();
        let fault = Fault::new(Effect::status(429).retry_after(3)).verb(Verb::List).resource(Resource::Pods);
        let id = faults.inject(fault.page(2).times(1));
        assert_eq!(faults.next_effect(Verb::Watch, Resource::Pods, 1), None);
        assert_eq!(faults.next_effect(Verb::List, Resource::Pods, 1), None);
        let effect = Effect(EffectKind::Status { code: 429, retry_after: Some(3) });
        assert_eq!(faults.next_effect(Verb::List, Resource::Pods, 2), Some(effect));
        assert_eq!(faults.next_effect(Verb::List, Resource::Pods, 2), None, "only once");
        faults.withdraw(id);
        assert!(faults.faults.is_empty());
    }
}
