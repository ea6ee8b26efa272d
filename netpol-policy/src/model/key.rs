//! Keys of objects: the namespace and the name. [`ObjectKey`] also has the kind.

use std::fmt;
use std::sync::Arc;

/// The name of a namespace. An `Arc`, because thousands of pods share the same namespace.
pub type NamespaceName = Arc<str>;

macro_rules! namespaced_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// The namespace.
            pub namespace: NamespaceName,
            /// The name of the object in the namespace.
            pub name: Arc<str>,
        }

        impl $name {
            /// Creates a key.
            pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
                Self { namespace: namespace.into(), name: name.into() }
            }
        }
    };
}

macro_rules! display_namespaced_key {
    ($name:ident) => {
        /// Writes `namespace/name`.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }
    };
}

namespaced_key! {
    /// Key of a pod.
    PodKey
}
namespaced_key! {
    /// Key of a network policy.
    PolicyKey
}
namespaced_key! {
    /// Key of a Service.
    ServiceKey
}
namespaced_key! {
    /// Key of an `EndpointSlice`.
    SliceKey
}
// `PodKey` has its own `Display`, in `workload`.
display_namespaced_key!(PolicyKey);
display_namespaced_key!(ServiceKey);
display_namespaced_key!(SliceKey);

/// Kind and key of any object.
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

/// Writes `Kind namespace/name`, or `Kind name` for a namespace or node.
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
