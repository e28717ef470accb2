// The rows of a prompt are rows like others: each sees its own position and those before.
#pragma once

#include "../attention_decode/reference.h"
