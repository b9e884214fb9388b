# Copyright 2026 The soupjax Authors
# SPDX-License-Identifier: Apache-2.0
"""The uniform soup of checkpoint files (arXiv 2203.05482, Table 2).

  soupjax --config=configs/soups/uniform.py \
    --config.ingredients='ckpts/*.safetensors' \
    --config.out=soup.safetensors

With --dry_run it checks everything, prints the plan and stops. The result is
the mean of all ingredients, correctly rounded to 1 ulp. Takes about as long as
reading the ingredients twice, once of it for the content hashes that are kept
with the soup (--config.hash_inputs=False leaves them out).
"""

from soupjax.tasks import mix


def get_config(arg=None):
  del arg
  return mix.default_config().lock()
