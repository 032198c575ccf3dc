//! Tests of projects at the control API.

use super::faults::SimulatedServers;
use super::usage::{decide, get};
use protocol::governance::Change;
use protocol::project::{Project, ProjectList, ProjectQuota, ProjectTree};

#[tokio::test(start_paused = true)]
async fn the_list_of_projects_follows_the_vote() {
    let world = SimulatedServers::start(1);
    let leads = world.lead().await;
    let server = &world.servers[leads];
    let before: ProjectList = get(server, "/v1/projects").await;
    let names = |list: &ProjectList| -> Vec<String> {
        list.items.iter().map(|project| project.name.to_string()).collect()
    };
    assert_eq!((names(&before), before.half_life_seconds), (vec!["default".to_string()], 0));
    let quota = ProjectQuota { cpu_millicores: 1000, memory_bytes: 1 << 30, gpus: 2 };
    let project =
        |name: &str| Project { name: name.parse().unwrap(), parent: None, weight: 2, quota, borrow: None };
    let projects = vec![project("research"), project("vision")];
    let tree = ProjectTree { half_life_seconds: 3600, own_weight: 1, projects };
    decide(server, Change::SetProjects(Box::new(tree))).await;
    let after: ProjectList = get(server, "/v1/projects").await;
    assert_eq!(names(&after), ["default", "research", "vision"]);
    assert_eq!(
        (after.half_life_seconds, after.items[1].quota, after.items[1].weight),
        (3600, Some(quota), 2)
    );
    assert_eq!(after.items[0].quota, None, "the root has none");
}
