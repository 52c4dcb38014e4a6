#!/usr/bin/env bash
# A run on a spot slice of TPUs by queued resources. Start this where gcloud is logged in, on a machine that stays up; it
# may be started again:
#   nohup cluster/tpu-queue.sh &
#
# The hosts of a slice train as soon as they boot, and start again after 75, 134 or a crash. This script only asks for
# another slice when one has been taken away, and deletes it when a host has ended for good.
set -uo pipefail

# Edit these. The slice's service account needs the right to write to the bucket, and to read the image.
name=ada
zone=us-west4-a
slice=v5litepod-16
runtime=v2-alpha-tpuv5-lite
image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/ada:tpu  # of cluster/tpu.Dockerfile
mirror=gs://BUCKET/ada

ended="$mirror.exit_code"  # an object that the hosts write when they end for good
boot="$(mktemp)"
cat >"$boot" <<END
#!/usr/bin/env bash
gcloud auth configure-docker ${image%%/*} --quiet
mkdir -p /data /runs
in_image() {
  docker run --rm --privileged --net=host --user=root --stop-timeout=120 \\
    --volume=/data:/data --volume=/runs:/runs $image "\$@"
}
code=0
test -d /data/cifar10 || in_image python -m adversarial_augment.prepare cifar10 --data_dir=/data || code=\$?
while ((code == 0)); do
  in_image python -m adversarial_augment.train --config=configs/ada_edsr.py --config.data_dir=/data \\
    --workdir=/runs/$name --mirror=$mirror
  code=\$?
  ((code > 5)) || break  # 0: done; 1 to 5: a bug, wrong input, NaN, no usable checkpoint, a full disk
  code=0
  sleep 10
done
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
number="\$(curl --silent --header 'Metadata-Flavor: Google' \$attributes/agent-worker-number)"
((code == 0 && number > 0)) || echo "\$code" | gcloud storage cp - $ended
END

queued() {
  gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"
}
gcloud storage rm "$ended" 2>/dev/null
while true; do
  if code="$(gcloud storage cat "$ended" 2>/dev/null)"; then
    queued delete --force --quiet
    exit "$code"
  fi
  case "$(queued describe --format='value(state.state)' 2>/dev/null)" in
    '') queued create --node-id="$name" --accelerator-type="$slice" --runtime-version="$runtime" --spot \
      --metadata-from-file=startup-script="$boot" ;;
    FAILED | SUSPENDED) queued delete --force --quiet ;;
  esac
  sleep 60
done
