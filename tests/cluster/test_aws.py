"""The launch path of cluster.yaml in a simulated account (moto): rights, network, kinds of machines."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
REGION = "us-west-2"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def account(monkeypatch, tmp_path):
    """An empty account with a default network, and a home folder without keys."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        yield


def client(service):
    import boto3

    return boto3.client(service, REGION)


def make_stack(my_address="203.0.113.7/32"):
    subnet = next(
        each
        for each in client("ec2").describe_subnets()["Subnets"]
        if each["AvailabilityZone"] == f"{REGION}a"
    )
    values = {"MyAddress": my_address, "Vpc": subnet["VpcId"], "Subnet": subnet["SubnetId"]}
    client("cloudformation").create_stack(
        StackName="striate",
        TemplateBody=(ROOT / "docs/aws.yaml").read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )


def launched_config():
    from ray.autoscaler._private.commands import _bootstrap_config

    text = (ROOT / "cluster.yaml").read_text()
    image = client("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    raw = yaml.safe_load(text)
    for machine in raw["available_node_types"].values():
        # The simulated EC2 does not resolve parameters.
        assert machine["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/")
        machine["node_config"]["ImageId"] = image
    return _bootstrap_config(raw, no_config_cache=True)


def launch(config, kind, *, is_head):
    from ray.autoscaler import tags
    from ray.autoscaler._private.providers import _get_node_provider

    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    provider.create_node(
        dict(config["available_node_types"][kind]["node_config"]),
        {
            tags.TAG_RAY_NODE_KIND: tags.NODE_KIND_HEAD if is_head else tags.NODE_KIND_WORKER,
            tags.TAG_RAY_USER_NODE_TYPE: kind,
            tags.TAG_RAY_NODE_NAME: kind,
            tags.TAG_RAY_NODE_STATUS: "uninitialized",
        },
        1,
    )


def test_machines_are_launched_as_the_file_says_in_a_closed_group(account):
    make_stack()
    config = launched_config()
    for kind in config["available_node_types"]:
        launch(config, kind, is_head=kind == "head")
    machines = {}
    for reservation in client("ec2").describe_instances()["Reservations"]:
        for machine in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
            assert tags["ray-cluster-name"] == "striate"
            machines[tags["ray-user-node-type"]] = machine
    assert machines["head"]["InstanceType"] == "m6i.xlarge"
    assert machines["worker.spot"]["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in machines["worker.on_demand"]
    (group,) = (
        each
        for each in client("ec2").describe_security_groups()["SecurityGroups"]
        if each["GroupName"] == "striate-cluster"
    )
    for machine in machines.values():
        assert [each["GroupId"] for each in machine["SecurityGroups"]] == [group["GroupId"]]
        assert machine["Placement"]["AvailabilityZone"] == f"{REGION}a"
    # Ray has added nothing to the group, least of all SSH from everywhere.
    ranges = [each["CidrIp"] for rule in group["IpPermissions"] for each in rule["IpRanges"]]
    assert ranges == ["203.0.113.7/32"]


def test_ray_alone_would_have_opened_ssh_to_the_world(account):
    # The reason for the group in docs/aws.yaml, and the proof that the test above can fail.
    launched_config()
    groups = client("ec2").describe_security_groups()["SecurityGroups"]
    (group,) = (each for each in groups if each["GroupName"] == "striate-cluster")
    ranges = [each["CidrIp"] for rule in group["IpPermissions"] for each in rule["IpRanges"]]
    assert ranges == ["0.0.0.0/0"]


def statements(role):
    """Return what a role may do; the simulated account gives policies back as Python's text."""
    iam = client("iam")
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        document = ast.literal_eval(document) if isinstance(document, str) else document
        for statement in document["Statement"]:
            action = statement["Action"]
            yield {**statement, "Action": [action] if isinstance(action, str) else action}


def test_no_role_may_do_everything(account):
    make_stack()
    for role in ("striate-head", "striate-worker"):
        for statement in statements(role):
            assert not any(action.endswith("*") for action in statement["Action"])
            looks = all(
                action.split(":")[1].startswith(("Describe", "Get")) for action in statement["Action"]
            )
            # What changes something is bound to a resource, a region or the cluster's own tag.
            assert looks or statement["Resource"] != "*" or "Condition" in statement
    assert [each["Action"] for each in statements("striate-worker")] == [
        ["elasticfilesystem:DescribeFileSystems"]
    ]
    (passed,) = (each for each in statements("striate-head") if each["Action"] == ["iam:PassRole"])
    assert passed["Resource"].split("/")[-1] == "striate-worker"
    for name in ("striate-head", "striate-worker"):
        profile = client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        assert [role["RoleName"] for role in profile["Roles"]] == [name]


def test_the_template_uses_nothing_that_cloudformation_cannot_read():
    # It reads YAML without aliases and merges; the simulated one is more generous.
    text = (ROOT / "docs/aws.yaml").read_text(encoding="ascii")
    aliases = [token for token in yaml.scan(text) if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]
    assert aliases == []


def test_the_storage_is_encrypted_found_by_name_and_kept(account):
    make_stack()
    (storage,) = client("efs").describe_file_systems()["FileSystems"]
    assert storage["Encrypted"]
    assert storage["Name"] == "striate"
    template = (ROOT / "docs/aws.yaml").read_text()
    assert "DeletionPolicy: Retain" in template
