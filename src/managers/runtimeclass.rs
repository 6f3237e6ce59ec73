//! Kubernetes' object by which pods ask for the runtime.

/// What it says besides the names.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Labels of the nodes that have the runtime: pods of the class go nowhere else.
    pub node_selector: Vec<(String, String)>,
    /// What a pod costs besides its containers, as Kubernetes' quantities (`memory`, `4Mi`).
    pub overhead: Vec<(String, String)>,
}

/// The RuntimeClass of a handler, in YAML.
pub fn yaml(handler: &str, options: &Options) -> String {
    let mut text =
        format!("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {handler}\nhandler: {handler}\n");
    let mut map = |head: &str, entries: &[(String, String)]| {
        if !entries.is_empty() {
            text.push_str(head);
            for (key, value) in entries {
                // A string of JSON is one of YAML.
                let [key, value] = [key, value].map(|text| serde_json::Value::from(text.as_str()));
                text.push_str(&format!("    {key}: {value}\n"));
            }
        }
    };
    map("overhead:\n  podFixed:\n", &options.overhead);
    map("scheduling:\n  nodeSelector:\n", &options.node_selector);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_short_as_it_can_be_and_quotes_what_it_is_given() {
        let plain = yaml("proa", &Options::default());
        assert_eq!(
            plain,
            "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: proa\nhandler: proa\n"
        );
        let pair = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        let options = Options {
            node_selector: pair("example.test/proa", "true"),
            overhead: pair("memory", "4Mi"),
        };
        let long = yaml("proa", &options);
        assert_eq!(
            long.strip_prefix(&plain),
            Some(
                "overhead:\n  podFixed:\n    \"memory\": \"4Mi\"\nscheduling:\n  nodeSelector:\n    \"example.test/proa\": \"true\"\n"
            )
        );
    }
}
