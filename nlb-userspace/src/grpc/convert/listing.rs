//! The fields of what can be listed, by the names that filters and sorting use.

use nlb_proto::{ModuleInstance, Route, RoutingEntry};
use prost_types::Timestamp;

use super::pagination::{Listed, Value};

fn seconds(timestamp: &Option<Timestamp>) -> Value {
    Value::Time(timestamp.map_or(0, |timestamp| timestamp.seconds))
}

impl Listed for ModuleInstance {
    fn value(&self, field: &str) -> Option<Value> {
        if let Some(key) = field.strip_prefix("metadata.") {
            return Some(Value::Text(self.metadata.get(key).cloned().unwrap_or_default()));
        }
        Some(match field {
            "instance_id" => Value::Text(self.instance_id.clone()),
            "module_type" => Value::Name(self.module_type().as_str_name()),
            "address" => Value::Text(self.address.clone()),
            "health_status" => Value::Name(self.health_status().as_str_name()),
            "started_at" => seconds(&self.started_at),
            "current_connections" => Value::Number(self.current_connections.into()),
            "max_connections" => Value::Number(self.max_connections.into()),
            "version" => Value::Text(self.version.clone()),
            "traffic_weight" => Value::Number(self.traffic_weight.into()),
            _ => return None,
        })
    }
}

impl Listed for Route {
    fn value(&self, field: &str) -> Option<Value> {
        for (prefix, map) in [("metadata.", &self.metadata), ("headers.", &self.headers)] {
            if let Some(key) = field.strip_prefix(prefix) {
                return Some(Value::Text(map.get(key).cloned().unwrap_or_default()));
            }
        }
        Some(match field {
            "route_id" => Value::Text(self.route_id.clone()),
            "protocol" => Value::Name(self.protocol().as_str_name()),
            "source_pattern" => Value::Text(self.source_pattern.clone()),
            "destination_pattern" => Value::Text(self.destination_pattern.clone()),
            "source_port" => Value::Number(self.source_port.into()),
            "destination_port" => Value::Number(self.destination_port.into()),
            "path_pattern" => Value::Text(self.path_pattern.clone()),
            "priority" => Value::Number(self.priority.into()),
            _ => return None,
        })
    }
}

impl Listed for RoutingEntry {
    fn value(&self, field: &str) -> Option<Value> {
        Some(match field {
            "target_instance_id" => Value::Text(self.target_instance_id.clone()),
            "target_module_type" => Value::Name(self.target_module_type().as_str_name()),
            "current_connections" => Value::Number(self.current_connections.into()),
            "created_at" => seconds(&self.created_at),
            "last_used" => seconds(&self.last_used),
            _ => {
                let field = field.strip_prefix("route.").unwrap_or(field);
                return self.route.as_ref().unwrap_or(&Route::default()).value(field);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_entries_are_searched_by_their_route_too() {
        let route = Route { route_id: "web".into(), destination_port: 80, ..Default::default() };
        let entry = RoutingEntry { route: Some(route), target_instance_id: "a".into(), ..Default::default() };
        for field in ["route_id", "route.route_id"] {
            assert_eq!(entry.value(field), Some(Value::Text("web".into())));
        }
        assert_eq!(entry.value("destination_port"), Some(Value::Number(80)));
        assert_eq!(RoutingEntry::default().value("nothing"), None);
    }
}
