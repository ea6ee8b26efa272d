//! What a test does to requests.

use std::time::Duration;

use crate::resource::{Resource, Verb};

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect(pub(crate) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Status { code: u16, retry_after: Option<u32> },
    Delay(Duration),
    Cut,
    CutMiddle,
    Hang,
    Empty,
    Garbage,
}

impl Effect {
    /// Answers with a `Status` of this code; 410 is the one of an expired version.
    pub const fn status(code: u16) -> Self {
        Self(Kind::Status { code, retry_after: None })
    }

    /// Adds `Retry-After`, in seconds, to a status.
    #[must_use]
    pub const fn retry_after(self, seconds: u32) -> Self {
        match self.0 {
            Kind::Status { code, .. } => Self(Kind::Status { code, retry_after: Some(seconds) }),
            Kind::Delay(_) | Kind::Cut | Kind::CutMiddle | Kind::Hang | Kind::Empty | Kind::Garbage => self,
        }
    }

    /// Answers rightly, but late.
    pub const fn delay(time: Duration) -> Self {
        Self(Kind::Delay(time))
    }

    /// Cuts the connection instead of answering.
    pub const fn cut() -> Self {
        Self(Kind::Cut)
    }

    /// Cuts the connection in the middle of the answer: half of a list, half of a watch's first event.
    pub const fn cut_in_the_middle() -> Self {
        Self(Kind::CutMiddle)
    }

    /// Sends the head of an answer of status 200, and nothing more.
    pub const fn hang() -> Self {
        Self(Kind::Hang)
    }

    /// Status 200 and an empty body: a watch that ends at once.
    pub const fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// Status 200 and a body that is no JSON.
    pub const fn garbage() -> Self {
        Self(Kind::Garbage)
    }
}

/// A fault to inject; without further words it meets every request, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    effect: Effect,
    verb: Option<Verb>,
    resource: Option<Resource>,
    page: Option<usize>,
    left: Option<usize>,
}

/// Which fault, to take it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(u64);

impl Fault {
    /// With this effect.
    pub const fn on(effect: Effect) -> Self {
        Self { effect, verb: None, resource: None, page: None, left: None }
    }

    /// Only requests with this verb.
    #[must_use]
    pub const fn verb(mut self, verb: Verb) -> Self {
        self.verb = Some(verb);
        self
    }

    /// Only requests for this resource.
    #[must_use]
    pub const fn resource(mut self, resource: Resource) -> Self {
        self.resource = Some(resource);
        self
    }

    /// Only this page of a list; the first is 1.
    #[must_use]
    pub const fn page(mut self, page: usize) -> Self {
        self.page = Some(page);
        self
    }

    /// Only so many times.
    #[must_use]
    pub const fn times(mut self, times: usize) -> Self {
        self.left = Some(times);
        self
    }
}

/// The faults in force.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    next: u64,
    faults: Vec<(FaultId, Fault)>,
}

impl Faults {
    pub(crate) fn inject(&mut self, fault: Fault) -> FaultId {
        self.next += 1;
        self.faults.push((FaultId(self.next), fault));
        FaultId(self.next)
    }

    pub(crate) fn withdraw(&mut self, id: FaultId) {
        self.faults.retain(|(one, _)| *one != id);
    }

    pub(crate) fn clear(&mut self) {
        self.faults.clear();
    }

    /// What meets a request: the oldest fault that matches, which thereby happens once more.
    pub(crate) fn meet(&mut self, verb: Verb, resource: Resource, page: usize) -> Option<Effect> {
        let matches = |fault: &Fault| {
            fault.verb.is_none_or(|one| one == verb)
                && fault.resource.is_none_or(|one| one == resource)
                && fault.page.is_none_or(|one| verb == Verb::List && one == page)
                && fault.left != Some(0)
        };
        let (_, fault) = self.faults.iter_mut().find(|(_, fault)| matches(fault))?;
        fault.left = fault.left.map(|left| left - 1);
        Some(fault.effect.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_meets_what_it_names_and_so_often() {
        let mut faults = Faults::default();
        let fault = Fault::on(Effect::status(429).retry_after(3)).verb(Verb::List).resource(Resource::Pods);
        let id = faults.inject(fault.page(2).times(1));
        assert_eq!(faults.meet(Verb::Watch, Resource::Pods, 1), None);
        assert_eq!(faults.meet(Verb::List, Resource::Pods, 1), None);
        let effect = Effect(Kind::Status { code: 429, retry_after: Some(3) });
        assert_eq!(faults.meet(Verb::List, Resource::Pods, 2), Some(effect));
        assert_eq!(faults.meet(Verb::List, Resource::Pods, 2), None, "only once");
        faults.withdraw(id);
        assert!(faults.faults.is_empty());
    }
}
