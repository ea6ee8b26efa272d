//! Identities of objects.

use std::fmt;
use std::sync::Arc;

/// A namespace's name. Shared, as thousands of pods name the same one.
pub type NamespaceName = Arc<str>;

macro_rules! namespaced_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// The namespace.
            pub namespace: NamespaceName,
            /// The name within it.
            pub name: Arc<str>,
        }

        impl $name {
            /// The key of `namespace/name`.
            pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
                Self { namespace: namespace.into(), name: name.into() }
            }
        }

        /// `namespace/name`.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }
    };
}

namespaced_key! {
    /// Names a pod.
    PodKey
}
namespaced_key! {
    /// Names a network policy.
    PolicyKey
}
namespaced_key! {
    /// Names a Service.
    ServiceKey
}
namespaced_key! {
    /// Names an `EndpointSlice`.
    SliceKey
}

/// Names any object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// A namespace.
    Namespace(NamespaceName),
    /// A pod.
    Pod(PodKey),
    /// A node.
    Node(Arc<str>),
    /// A network policy.
    Policy(PolicyKey),
    /// A Service.
    Service(ServiceKey),
    /// An `EndpointSlice`.
    Slice(SliceKey),
}

/// `Kind namespace/name`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Pod(key) => write!(f, "Pod {key}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Policy(key) => write!(f, "NetworkPolicy {key}"),
            Self::Service(key) => write!(f, "Service {key}"),
            Self::Slice(key) => write!(f, "EndpointSlice {key}"),
        }
    }
}
