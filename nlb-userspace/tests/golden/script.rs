//! The language of the scenarios.
//!
//! ```text
//! # A comment.
//! $ configure vips=192.0.2.1 fail_open=false backends=3     (before anything else, if at all)
//! $ route web tcp port=80 to=192.0.2.1 from=10.0.0.0/8 priority=5 listen_port=8080
//! $ register alb-1 at=10.0.0.1 routes=web,dns version=v1 weight=50 status=healthy
//! $ update alb-1|operator replace routes=web
//! $ heartbeat alb-1 status=degraded
//! $ weigh alb-1 5  |  $ weigh version v2 5  |  $ weigh version v2 5 in DBLB
//! $ unregister alb-1  |  $ unregister alb-1 gracefully 10
//! $ limit few on=route:web second=100 minute=1000 hour=5000 burst=50 unit=packets off  |  $ unlimit few
//! $ ability alb-1 web 7  |  $ ability alb-1 web none         (its answer to CanHandle)
//! $ learn 192.0.2.1:81/tcp alb-1 7                           (a destination without a route, and its answer)
//! $ drain alb-1 10  |  $ resume alb-1
//! $ hop 10.0.0.1 from 10.0.0.100  |  $ hop 10.0.0.1 unknown
//! $ wait 30                                                  (seconds; leases without heartbeats expire)
//! $ fail after 3 times 2                                     (of the changes to the maps)
//! $ dump  |  $ changes  |  $ owners  |  $ applied
//! ```
//!
//! `route` only names a route that later lines register or update. Unknown words with `=` are metadata of the
//! route or the instance. Calls result in one line; `dump` and similar ones in what they show.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use nlb::model::L4;
use nlb::model::destination::L4Destination;
use nlb::model::settings::Settings;
use nlb_proto::{HealthStatus, ModuleInstance, ModuleType, Protocol, RateLimit, Route};

use super::fleet::Fleet;
use super::settings::settings;

/// The scenario with the actual results of its calls.
pub fn run(file: &Path, text: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let mut scenario = Scenario { fleet: None, routes: BTreeMap::new() };
        let mut out = String::new();
        let mut within_answer = false;
        for (index, line) in text.lines().enumerate() {
            let Some(call) = line.strip_prefix("$ ") else {
                within_answer &= !line.is_empty();
                if !within_answer {
                    out += &format!("{line}\n");
                }
                continue;
            };
            within_answer = true;
            let answer = scenario.perform(call).await;
            let answer = answer.unwrap_or_else(|error| panic!("{}:{}: {error}", file.display(), index + 1));
            out += &format!("{line}\n{answer}");
        }
        out
    })
}

struct Scenario {
    /// Started by the first call that is not `configure`.
    fleet: Option<Fleet>,
    /// Routes as protobuf messages, by name.
    routes: BTreeMap<String, Route>,
}

impl Scenario {
    async fn perform(&mut self, call: &str) -> Result<String, String> {
        let words: Vec<&str> = call.split_whitespace().collect();
        let words = words.as_slice();
        if let ["configure", settings @ ..] = words {
            if self.fleet.is_some() {
                return Err("configure has to come first".to_owned());
            }
            self.fleet = Some(Fleet::start(configure(Pairs::of(settings)?)?));
            return Ok(String::new());
        }
        let answer = {
            let fleet = self.fleet.get_or_insert_with(|| Fleet::start(settings()));
            match words {
                ["route", name, protocol, rest @ ..] => {
                    let route = route(name, protocol, Pairs::of(rest)?)?;
                    self.routes.insert((*name).to_owned(), route);
                    String::new()
                }
                ["register", id, rest @ ..] => {
                    let (instance, routes) = instance(id, Pairs::of(rest)?, &self.routes)?;
                    fleet.register(instance, routes).await
                }
                ["update", owner, rest @ ..] => {
                    let (replace, rest) = match rest {
                        ["replace", rest @ ..] => (true, rest),
                        rest => (false, rest),
                    };
                    let source = if *owner == "operator" { "" } else { owner };
                    let routes = named(&self.routes, &Pairs::of(rest)?.take("routes").unwrap_or_default())?;
                    fleet.update_routing(source, routes, replace).await
                }
                ["heartbeat", id, rest @ ..] => fleet.heartbeat(id, status(&mut Pairs::of(rest)?)?).await,
                ["weigh", "version", version, weight] => fleet.weigh("", version, number(weight)?, "").await,
                ["weigh", "version", version, weight, "in", deployment] => {
                    fleet.weigh("", version, number(weight)?, deployment).await
                }
                ["weigh", id, weight] => fleet.weigh(id, "", number(weight)?, "").await,
                ["unregister", id] => fleet.unregister(id, None).await,
                ["unregister", id, "gracefully", seconds] => {
                    fleet.unregister(id, Some(number(seconds)?)).await
                }
                ["limit", id, rest @ ..] => {
                    let (enabled, rest) = match rest {
                        [rest @ .., "off"] => (false, rest),
                        rest => (true, rest),
                    };
                    fleet.limit(limit(id, enabled, Pairs::of(rest)?)?).await
                }
                ["ability", id, route_id, ability] => {
                    let priority = if *ability == "none" { None } else { Some(number(ability)?) };
                    fleet.say_ability(id, route_id, priority).await
                }
                ["learn", destination, id, ability] => {
                    let priority = if *ability == "none" { None } else { Some(number(ability)?) };
                    fleet.learn(wanted(destination)?, id, priority).await
                }
                ["unlimit", id] => fleet.unlimit(id).await,
                ["drain", id, seconds] => fleet.drain(id, number(seconds)?).await,
                ["resume", id] => fleet.resume(id).await,
                ["hop", address, "from", source] => {
                    fleet.hop(number(address)?, Some(number(source)?));
                    String::new()
                }
                ["hop", address, "unknown"] => {
                    fleet.hop(number(address)?, None);
                    String::new()
                }
                ["wait", seconds] => {
                    tokio::time::sleep(Duration::from_secs_f64(number(seconds)?)).await;
                    String::new()
                }
                ["fail", "after", successes, "times", failures] => {
                    fleet.fail_after(number(successes)?, number(failures)?);
                    String::new()
                }
                ["dump"] => fleet.dump(),
                ["changes"] => fleet.changes(),
                ["owners"] => fleet.owners(),
                ["applied"] => fleet.error(),
                _ => return Err(format!("`{call}` is no call; script.rs lists them")),
            }
        };
        // Tasks that the call woke run before the next call.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(answer)
    }
}

fn configure(mut pairs: Pairs) -> Result<Settings, String> {
    let mut settings = settings();
    if let Some(vips) = pairs.take("vips") {
        let nets = vips.split(',').map(|vip| Ok(IpNet::from(number::<std::net::IpAddr>(vip)?)));
        settings.vips = nets.collect::<Result<_, String>>()?;
    }
    if let Some(fail_open) = pairs.take("fail_open") {
        settings.fail_open = number(&fail_open)?;
    }
    if let Some(backends) = pairs.take("backends") {
        settings.limits.backends = number(&backends)?;
    }
    if let Some(learn_routes) = pairs.take("learn_routes") {
        settings.learn_routes = number(&learn_routes)?;
    }
    if let Some(max_routes) = pairs.take("max_routes") {
        settings.max_routes = number(&max_routes)?;
    }
    pairs.done()?;
    Ok(settings)
}

fn wanted(destination: &str) -> Result<L4Destination, String> {
    let (address, l4) = match (destination.strip_suffix("/tcp"), destination.strip_suffix("/udp")) {
        (Some(address), _) => (address, L4::Tcp),
        (_, Some(address)) => (address, L4::Udp),
        _ => return Err(format!("`{destination}` ends neither in /tcp nor in /udp")),
    };
    let address: SocketAddr = number(address)?;
    Ok(L4Destination { vip: address.ip(), port: address.port(), l4 })
}

fn limit(id: &str, enabled: bool, mut pairs: Pairs) -> Result<RateLimit, String> {
    let mut count = |name: &str| number(&pairs.take(name).unwrap_or_else(|| "0".to_owned()));
    Ok(RateLimit {
        limit_id: id.to_owned(),
        requests_per_second: count("second")?,
        requests_per_minute: count("minute")?,
        requests_per_hour: count("hour")?,
        burst_size: count("burst")?,
        enabled,
        target: pairs.take("on").unwrap_or_default(),
        metadata: pairs.0.into_iter().collect(),
    })
}

fn route(name: &str, protocol: &str, mut pairs: Pairs) -> Result<Route, String> {
    let protocol = Protocol::from_str_name(&format!("PROTOCOL_{}", protocol.to_uppercase()))
        .ok_or_else(|| format!("`{protocol}` is no protocol"))?;
    Ok(Route {
        route_id: name.to_owned(),
        protocol: protocol.into(),
        source_pattern: pairs.take("from").unwrap_or_default(),
        destination_pattern: pairs.take("to").unwrap_or_default(),
        destination_port: number(&pairs.take("port").unwrap_or_else(|| "0".to_owned()))?,
        priority: number(&pairs.take("priority").unwrap_or_else(|| "0".to_owned()))?,
        metadata: pairs.0.into_iter().collect(),
        ..Route::default()
    })
}

fn instance(
    id: &str,
    mut pairs: Pairs,
    known: &BTreeMap<String, Route>,
) -> Result<(ModuleInstance, Vec<Route>), String> {
    let module_type = pairs.take("type").unwrap_or_else(|| "ALB".to_owned());
    let module_type = ModuleType::from_str_name(&format!("MODULE_TYPE_{module_type}"))
        .ok_or_else(|| format!("`{module_type}` is no module type"))?;
    let routes = named(known, &pairs.take("routes").unwrap_or_default())?;
    if let Some(at) = pairs.take("at") {
        pairs.0.insert("data_address".to_owned(), at);
    }
    let instance = ModuleInstance {
        instance_id: id.to_owned(),
        module_type: module_type.into(),
        address: "10.0.0.254:50051".to_owned(),
        health_status: status(&mut pairs)?.into(),
        version: pairs.take("version").unwrap_or_default(),
        traffic_weight: number(&pairs.take("weight").unwrap_or_else(|| "0".to_owned()))?,
        metadata: pairs.0.into_iter().collect(),
        ..ModuleInstance::default()
    };
    Ok((instance, routes))
}

fn named(known: &BTreeMap<String, Route>, names: &str) -> Result<Vec<Route>, String> {
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| known.get(name).cloned().ok_or_else(|| format!("there is no route `{name}`"))).collect()
}

fn status(pairs: &mut Pairs) -> Result<HealthStatus, String> {
    let Some(status) = pairs.take("status") else { return Ok(HealthStatus::Unspecified) };
    HealthStatus::from_str_name(&format!("HEALTH_STATUS_{}", status.to_uppercase()))
        .ok_or_else(|| format!("`{status}` is no health status"))
}

fn number<T: FromStr<Err: Display>>(word: &str) -> Result<T, String> {
    word.parse().map_err(|error| format!("`{word}`: {error}"))
}

/// The `key=value` words of a line.
struct Pairs(BTreeMap<String, String>);

impl Pairs {
    fn of(words: &[&str]) -> Result<Pairs, String> {
        let pairs = words.iter().map(|word| {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}` is not key=value"))?;
            Ok((key.to_owned(), value.to_owned()))
        });
        pairs.collect::<Result<_, String>>().map(Pairs)
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    fn done(self) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("`{key}` is not known here")),
        }
    }
}
