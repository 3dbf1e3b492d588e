//! Filters, order and pages of listing calls.

use std::cmp::Ordering;

use nlb_proto::{Filter, HealthStatus, ModuleType, Named as _, Pagination, Protocol, Query, without_prefix};
use prost_types::Timestamp;

use super::numbers::signed_32;
use super::validate::{self, FieldViolation};

const PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1000;
const MAX_FILTERS: usize = 32;

/// A field's value for filters and sorting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Number(i64),
    /// Seconds since 1970.
    Time(i64),
    Text(String),
    /// An enum value's full name.
    Name(&'static str),
}

/// A message that can be listed.
pub(crate) trait Listed: Default {
    /// `None` if the message has no such field.
    fn value(&self, field: &str) -> Option<Value>;
}

/// One page of the items that match the query, and its position.
pub(crate) fn run<T: Listed>(
    query: Option<Query>,
    items: Vec<T>,
) -> Result<(Vec<T>, Pagination), FieldViolation> {
    let query = query.unwrap_or_default();
    let page = Page::parse(query.pagination.unwrap_or_default())?;
    if query.filters.len() > MAX_FILTERS {
        return Err(FieldViolation::new("query.filters", format!("are more than {MAX_FILTERS}")));
    }
    let conditions = query.filters.into_iter().enumerate().map(|(index, filter)| {
        Condition::parse::<T>(filter).map_err(|violation| violation.within(format!("query.filters[{index}]")))
    });
    let conditions: Vec<Condition> = conditions.collect::<Result<_, _>>()?;
    let mut items: Vec<T> =
        items.into_iter().filter(|item| conditions.iter().all(|c| c.holds(item))).collect();
    if !query.sort_by.is_empty() {
        sample::<T>(&query.sort_by).map_err(|problem| FieldViolation::new("query.sort_by", problem))?;
        items.sort_by(|a, b| {
            let order = a.value(&query.sort_by).cmp(&b.value(&query.sort_by));
            if query.sort_desc { order.reverse() } else { order }
        });
    }
    Ok(page.cut(items))
}

struct Page {
    number: usize,
    size: usize,
}

impl Page {
    fn parse(wanted: Pagination) -> Result<Self, FieldViolation> {
        let parse = |field: &str, number: i32, default: usize| match usize::try_from(number) {
            Ok(0) => Ok(default),
            Ok(number) => Ok(number),
            Err(_) => {
                Err(FieldViolation::new(format!("query.pagination.{field}"), format!("{number} is negative")))
            }
        };
        let size = parse("page_size", wanted.page_size, PAGE_SIZE)?.min(MAX_PAGE_SIZE);
        Ok(Page { number: parse("page", wanted.page, 1)?, size })
    }

    fn cut<T>(&self, items: Vec<T>) -> (Vec<T>, Pagination) {
        let pagination = Pagination {
            page: signed_32(self.number),
            page_size: signed_32(self.size),
            total_items: signed_32(items.len()),
            total_pages: signed_32(items.len().div_ceil(self.size)),
        };
        let skipped = (self.number - 1).saturating_mul(self.size);
        (items.into_iter().skip(skipped).take(self.size).collect(), pagination)
    }
}

struct Condition {
    field: String,
    test: Test,
}

enum Test {
    Order(fn(Ordering) -> bool, Value),
    In(Vec<Value>),
    Contains(String),
}

impl Condition {
    fn parse<T: Listed>(filter: Filter) -> Result<Self, FieldViolation> {
        let sample = sample::<T>(&filter.field).map_err(|problem| FieldViolation::new("field", problem))?;
        validate::text("value", &filter.value, validate::TEXT_LENGTH)?;
        let value = || operand(&sample, &filter.value);
        let test = match filter.operator.as_str() {
            "eq" | "" => Test::Order(Ordering::is_eq, value()?),
            "ne" => Test::Order(Ordering::is_ne, value()?),
            "in" => {
                let values = filter.value.split(',').map(|value| operand(&sample, value.trim()));
                Test::In(values.collect::<Result<_, _>>()?)
            }
            "gt" | "lt" | "ge" | "le" if matches!(sample, Value::Name(_)) => {
                return Err(FieldViolation::new(
                    "operator",
                    format!("{:?} has no order; use eq, ne or in", filter.field),
                ));
            }
            "gt" => Test::Order(Ordering::is_gt, value()?),
            "lt" => Test::Order(Ordering::is_lt, value()?),
            "ge" => Test::Order(Ordering::is_ge, value()?),
            "le" => Test::Order(Ordering::is_le, value()?),
            "contains" if matches!(sample, Value::Number(_) | Value::Time(_)) => {
                return Err(FieldViolation::new(
                    "operator",
                    format!("{:?} is a number or a time; contains is for text", filter.field),
                ));
            }
            "contains" => Test::Contains(filter.value),
            other => {
                let problem = format!("{other:?} is none of eq, ne, gt, lt, ge, le, in and contains");
                return Err(FieldViolation::new("operator", problem));
            }
        };
        Ok(Condition { field: filter.field, test })
    }

    fn holds<T: Listed>(&self, item: &T) -> bool {
        let Some(value) = item.value(&self.field) else { return false };
        match (&self.test, value) {
            (Test::Order(holds, operand), value) => holds(value.cmp(operand)),
            (Test::In(operands), value) => operands.iter().any(|operand| value.cmp(operand).is_eq()),
            (Test::Contains(part), Value::Text(text)) => text.contains(part),
            (Test::Contains(part), Value::Name(name)) => {
                let prefix = prefix(name);
                let short = name.strip_prefix(prefix).unwrap_or(name);
                short.contains(&without_prefix(part, prefix))
            }
            (Test::Contains(_), Value::Number(_) | Value::Time(_)) => false,
        }
    }
}

/// A value of the field's kind.
fn sample<T: Listed>(field: &str) -> Result<Value, String> {
    T::default().value(field).ok_or_else(|| format!("{field:?} is not a field of what is listed"))
}

fn operand(sample: &Value, text: &str) -> Result<Value, FieldViolation> {
    match sample {
        Value::Number(_) => {
            let number = text
                .parse()
                .map_err(|_| FieldViolation::new("value", format!("{text:?} is not a whole number")));
            Ok(Value::Number(number?))
        }
        Value::Time(_) => {
            let seconds = text.parse().ok();
            let seconds = seconds.or_else(|| text.parse::<Timestamp>().ok().map(|time| time.seconds));
            let problem =
                || format!("{text:?} is neither seconds since 1970 nor a time such as 2026-01-31T12:00:00Z");
            seconds.map(Value::Time).ok_or_else(|| FieldViolation::new("value", problem()))
        }
        Value::Text(_) => Ok(Value::Text(text.to_owned())),
        Value::Name(unspecified) => {
            if let Some(name) = text.parse().ok().and_then(|number| numbered(unspecified, number)) {
                return Ok(Value::Name(name));
            }
            let prefix = prefix(unspecified);
            match known_name(&format!("{prefix}{}", without_prefix(text, prefix))) {
                Some(name) => Ok(Value::Name(name)),
                None => Err(FieldViolation::new("value", format!("{text:?} is not a value of this enum"))),
            }
        }
    }
}

/// The full name, if it is a value of one of the listed enums.
fn known_name(full: &str) -> Option<&'static str> {
    let module_type = ModuleType::from_str_name(full).map(|value| value.as_str_name());
    let health = HealthStatus::from_str_name(full).map(|value| value.as_str_name());
    let protocol = Protocol::from_str_name(full).map(|value| value.as_str_name());
    module_type.or(health).or(protocol)
}

/// The name of a value of the enum whose value 0 has this name.
fn numbered(unspecified: &str, number: i32) -> Option<&'static str> {
    if unspecified == ModuleType::Unspecified.as_str_name() {
        ModuleType::try_from(number).ok().map(|value| value.as_str_name())
    } else if unspecified == HealthStatus::Unspecified.as_str_name() {
        HealthStatus::try_from(number).ok().map(|value| value.as_str_name())
    } else {
        Protocol::try_from(number).ok().map(|value| value.as_str_name())
    }
}

/// The prefix of this enum value's name.
fn prefix(name: &str) -> &'static str {
    let prefixes = [ModuleType::PREFIX, HealthStatus::PREFIX, Protocol::PREFIX];
    prefixes.into_iter().find(|prefix| name.starts_with(prefix)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use nlb_proto::ModuleInstance;

    use super::*;

    fn fleet() -> Vec<ModuleInstance> {
        let instance = |id: &str, weight, module_type: ModuleType, zone: &str, seconds| ModuleInstance {
            started_at: Some(Timestamp { seconds, nanos: 0 }),
            instance_id: id.into(),
            traffic_weight: weight,
            module_type: module_type.into(),
            metadata: [("zone".to_owned(), zone.to_owned())].into(),
            ..Default::default()
        };
        vec![
            instance("a", 100, ModuleType::Alb, "eu-1", 1_769_860_799),
            instance("b", 50, ModuleType::Dblb, "eu-2", 1_769_860_800),
            instance("c", 7, ModuleType::Alb, "us-1", 1_769_860_801),
        ]
    }

    fn filtered(field: &str, operator: &str, value: &str) -> Result<String, FieldViolation> {
        let filter = Filter { field: field.into(), operator: operator.into(), value: value.into() };
        let query = Query { filters: vec![filter], ..Default::default() };
        run(Some(query), fleet()).map(|(found, _)| ids(&found))
    }

    fn ids(found: &[ModuleInstance]) -> String {
        found.iter().map(|instance| instance.instance_id.as_str()).collect()
    }

    #[test]
    fn every_operator_does_what_its_name_says() {
        for (field, operator, value, expected) in [
            ("traffic_weight", "eq", "50", "b"),
            ("traffic_weight", "", "50", "b"),
            ("traffic_weight", "ne", "50", "ac"),
            ("traffic_weight", "gt", "7", "ab"),
            ("traffic_weight", "ge", "50", "ab"),
            ("traffic_weight", "lt", "50", "c"),
            ("traffic_weight", "le", "50", "bc"),
            ("traffic_weight", "in", "7, 100", "ac"),
            ("metadata.zone", "contains", "eu", "ab"),
            ("metadata.zone", "gt", "eu-1", "bc"),
            ("metadata.nowhere", "eq", "", "abc"),
            ("module_type", "eq", "ALB", "ac"),
            ("module_type", "ne", "MODULE_TYPE_ALB", "b"),
            ("module_type", "in", "dblb,rtmp", "b"),
            ("module_type", "contains", "alb", "ac"),
            ("module_type", "contains", "Module_Type_alb", "ac"),
            ("module_type", "contains", "TYPE", ""),
            ("module_type", "eq", "module_type_dblb", "b"),
            ("module_type", "in", "MODULE_TYPE_DBLB,module_type_rtmp", "b"),
            ("health_status", "ne", "Health_Status_Healthy", "abc"),
            ("module_type", "eq", "1", "ac"),
            ("module_type", "in", "1, dblb", "abc"),
            ("started_at", "ge", "2026-01-31T12:00:00Z", "bc"),
            ("started_at", "eq", "2026-01-31T13:00:01+01:00", "c"),
            ("started_at", "lt", "1769860800", "a"),
        ] {
            assert_eq!(
                filtered(field, operator, value).as_deref(),
                Ok(expected),
                "{field} {operator} {value}"
            );
        }
    }

    #[test]
    fn invalid_filters_are_refused_by_field_name() {
        for (field, operator, value, at) in [
            ("wieght", "eq", "1", "field"),
            ("", "eq", "1", "field"),
            ("traffic_weight", "like", "1", "operator"),
            ("traffic_weight", "contains", "1", "operator"),
            ("module_type", "gt", "ALB", "operator"),
            ("traffic_weight", "eq", "many", "value"),
            ("module_type", "eq", "CDN", "value"),
            ("module_type", "eq", "99", "value"),
            ("started_at", "gt", "yesterday", "value"),
            ("started_at", "contains", "2026", "operator"),
            ("module_type", "in", "ALB,HEALTH_STATUS_HEALTHY", "value"),
        ] {
            let violation = filtered(field, operator, value).unwrap_err();
            assert_eq!(violation.field, format!("query.filters[0].{at}"), "{field} {operator} {value}");
        }
        let query = Query { sort_by: "wieght".into(), ..Default::default() };
        assert_eq!(run(Some(query), fleet()).unwrap_err().field, "query.sort_by");
    }

    #[test]
    fn sorts_both_ways() {
        let sorted = |sort_desc| {
            let query = Query { sort_by: "traffic_weight".into(), sort_desc, ..Default::default() };
            ids(&run(Some(query), fleet()).unwrap().0)
        };
        assert_eq!(sorted(false), "cba");
        assert_eq!(sorted(true), "abc");
    }

    fn page(page: i32, page_size: i32) -> Result<(Vec<ModuleInstance>, Pagination), FieldViolation> {
        let pagination = Some(Pagination { page, page_size, ..Default::default() });
        run(Some(Query { pagination, ..Default::default() }), fleet())
    }

    #[test]
    fn pages_count_from_one() {
        let (found, pagination) = page(2, 2).unwrap();
        assert_eq!(ids(&found), "c");
        assert_eq!(pagination, Pagination { page: 2, page_size: 2, total_items: 3, total_pages: 2 });
        assert_eq!(ids(&page(3, 2).unwrap().0), "");
        assert_eq!(ids(&page(i32::MAX, i32::MAX).unwrap().0), "");
        assert_eq!(page(0, 5000).unwrap().1.page_size, 1000);
        assert_eq!(
            run(None, fleet()).unwrap().1,
            Pagination { page: 1, page_size: 100, total_items: 3, total_pages: 1 }
        );
        assert_eq!(page(-1, 0).unwrap_err().field, "query.pagination.page");
        assert_eq!(page(0, -1).unwrap_err().field, "query.pagination.page_size");
    }
}
