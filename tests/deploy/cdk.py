"""Makes the resources of examples/ecs-fargate in moto, once from its JSON and once from the template that its CDK
application synthesised, and compares what moto says of them. Compares the columns of both, and of Terraform's, with
glue-table.sql. Arguments: the template, Terraform's files as JSON, the folder of the example. Needs moto; no network."""

import json
import pathlib
import re
import sys

import boto3
from moto import mock_aws

template = json.loads(pathlib.Path(sys.argv[1]).read_text())["Resources"]
example = pathlib.Path(sys.argv[3])
REGION, ACCOUNT = "us-east-1", "123456789012"


def document(name):
    return json.loads((example / f"{name}.json").read_text())


def client(service):
    return boto3.client(service, region_name=REGION, aws_access_key_id="any", aws_secret_access_key="any")


def resolve(value):
    """The template's references as the names and ARNs that they will have."""
    if isinstance(value, list):
        return [resolve(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "Ref" in value:
        target = template[value["Ref"]]["Properties"]
        return next(target[key] for key in ("BucketName", "RoleName", "DeliveryStreamName") if key in target)
    if "Fn::GetAtt" in value:
        resource, attribute = value["Fn::GetAtt"]
        assert attribute == "Arn", value
        properties = template[resource]["Properties"]
        if "RoleName" in properties:
            return f"arn:aws:iam::{ACCOUNT}:role/{properties['RoleName']}"
        return f"arn:aws:s3:::{properties['BucketName']}"
    assert not any(key.startswith("Fn::") for key in value), value
    return {key: resolve(each) for key, each in value.items()}


def of_type(kind):
    return [resolve(it["Properties"]) for it in template.values() if it["Type"] == kind]


def api(value):
    """CloudFormation's names as those of ECS's API."""
    if isinstance(value, list):
        return [api(each) for each in value]
    if not isinstance(value, dict):
        return value
    renamed = {"EFSVolumeConfiguration": "efsVolumeConfiguration", "FilesystemId": "fileSystemId"}
    free = ("Options", "DockerLabels")
    return {
        renamed.get(key, key[0].lower() + key[1:]): each if key in free else api(each) for key, each in value.items()
    }


def statements(policy):
    """A policy's statements, with all of what may be one or many as lists."""
    listed = lambda value: sorted([value] if isinstance(value, str) else value)
    each = policy["Statement"]
    for statement in each if isinstance(each, list) else [each]:
        yield {key: listed(value) if key in ("Action", "Resource") else value for key, value in statement.items()}


@mock_aws
def made(roles, streams, tasks):
    """What moto says of all of it, sorted by name, without what differs from one making to the next."""
    iam, said = client("iam"), {}
    client("s3").create_bucket(Bucket="shop-logs")
    for name, trust, policies in roles:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        for policy, text in policies:
            iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=json.dumps(text))
        role = iam.get_role(RoleName=name)["Role"]
        said[role["Arn"], "trust"] = list(statements(role["AssumeRolePolicyDocument"]))
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            text = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            said[role["Arn"], policy] = list(statements(text))
    for stream in streams:
        firehose = client("firehose")
        firehose.create_delivery_stream(**stream)
        name = stream["DeliveryStreamName"]
        described = firehose.describe_delivery_stream(DeliveryStreamName=name)["DeliveryStreamDescription"]
        for key in ("CreateTimestamp", "LastUpdateTimestamp", "VersionId"):
            described.pop(key, None)
        said["stream", name] = described
    for task in tasks:
        described = client("ecs").register_task_definition(**task)["taskDefinition"]
        described.pop("registeredAt", None)
        said["task", described["family"]] = described
    return said


def columns_of(sql):
    body = re.search(r"CREATE EXTERNAL TABLE [^(]*\((.*?)\n\)", sql, re.S)[1]
    return [tuple(line.strip(" ,").replace("`", "").split()) for line in body.strip().splitlines()]


from_json = made(
    [
        ("shop-logs-firehose", document("firehose-role-trust"), [("deliver", document("firehose-role-policy"))]),
        ("shop-api-task", document("task-role-trust"), [("logs", document("task-role-policy"))]),
    ],
    [document("delivery-stream")],
    [document("task-definition")],
)
from_cdk = made(
    [
        (
            role["RoleName"],
            role["AssumeRolePolicyDocument"],
            [(policy["PolicyName"], policy["PolicyDocument"]) for policy in role["Policies"]],
        )
        for role in of_type("AWS::IAM::Role")
    ],
    of_type("AWS::KinesisFirehose::DeliveryStream"),
    [api(task) for task in of_type("AWS::ECS::TaskDefinition")],
)
assert len(from_json) == 6, sorted(from_json)
for key in sorted(from_json.keys() | from_cdk.keys()):
    left, right = from_json.get(key), from_cdk.get(key)
    assert left == right, f"{key}\nfrom the JSON: {left}\nfrom the CDK:  {right}"

# The table is made by Athena from the SQL, which moto does not run.
sql = (example / "glue-table.sql").read_text()
columns = columns_of(sql)
(table,) = of_type("AWS::Glue::Table")
described = table["TableInput"]
assert [(it["Name"], it["Type"]) for it in described["StorageDescriptor"]["Columns"]] == columns
properties = dict(re.findall(r"'([^']+)' = '([^']*)'", sql))
assert described["Parameters"] == properties, described["Parameters"]
assert described["StorageDescriptor"]["Location"] == re.search(r"LOCATION '(.*)'", sql)[1]

# Terraform's files: they can be read, and have the same columns and the same stream.
bare = lambda value: value.strip('"') if isinstance(value, str) else value
terraform = {}
for file in sorted(pathlib.Path(sys.argv[2]).glob("*.json")):
    for kind, blocks in json.loads(file.read_text()).items():
        if isinstance(blocks, list):
            terraform.setdefault(kind, []).extend(blocks)
variables = {bare(name): it for block in terraform["variable"] for name, it in block.items() if name != "__is_block__"}
assert [tuple(map(bare, it)) for it in variables["columns"]["default"]] == columns
resources = {}
for block in terraform["resource"]:
    for kind, named in block.items():
        if kind != "__is_block__":
            resources.setdefault(bare(kind), []).extend(it for name, it in named.items() if name != "__is_block__")
assert sorted(resources) == [
    "aws_ecs_task_definition",
    "aws_glue_catalog_database",
    "aws_glue_catalog_table",
    "aws_iam_role",
    "aws_iam_role_policy",
    "aws_kinesis_firehose_delivery_stream",
    "aws_s3_bucket",
    "aws_s3_bucket_public_access_block",
], sorted(resources)
(stream,) = resources["aws_kinesis_firehose_delivery_stream"]
(configured,) = stream["extended_s3_configuration"]
wanted = document("delivery-stream")["ExtendedS3DestinationConfiguration"]
for ours, theirs in [
    ("prefix", wanted["Prefix"]),
    ("error_output_prefix", wanted["ErrorOutputPrefix"]),
    ("buffering_size", wanted["BufferingHints"]["SizeInMBs"]),
    ("buffering_interval", wanted["BufferingHints"]["IntervalInSeconds"]),
    ("compression_format", wanted["CompressionFormat"]),
]:
    assert bare(configured[ours]) == theirs, f"{ours}: {configured[ours]}"
print(f"the CDK makes what the JSON makes: {len(from_json)} of {len(from_json)}")
