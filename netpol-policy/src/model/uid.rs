//! UIDs of pods.

/// An annotation of mirror pods (the API objects of static pods). Its value is the static pod's UID, which the
/// container runtime uses. Source: `ConfigMirrorAnnotationKey`, `pkg/kubelet/types/pod_update.go` of Kubernetes.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// A UID of 128 bits: a UUID, or the hash that the kubelet gives to a static pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(u128);

impl Uid {
    /// Parses a UID: 32 hexadecimal digits, with hyphens or without. Returns `None` for other text.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|character| *character != '-').collect();
        let is_uid = digits.len() == 32 && digits.chars().all(|digit| digit.is_ascii_hexdigit());
        is_uid.then(|| u128::from_str_radix(&digits, 16).ok().map(Self)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_and_hashes_are_parsed() {
        let uuid = Uid::parse("7b1d3c5e-0f2a-4b6c-8d9e-a1b2c3d4e5f6");
        assert!(uuid.is_some());
        assert_eq!(uuid, Uid::parse("7B1D3C5E0F2A4B6C8D9EA1B2C3D4E5F6"));
        assert_ne!(uuid, Uid::parse("7b1d3c5e-0f2a-4b6c-8d9e-a1b2c3d4e5f7"));
        for text in ["", "7b1d3c5e", "+b1d3c5e0f2a4b6c8d9ea1b2c3d4e5f6", "7b1d3c5e0f2a4b6c8d9ea1b2c3d4e5f600", "é"] {
            assert_eq!(Uid::parse(text), None, "{text}");
        }
    }
}
