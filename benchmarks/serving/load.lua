-- wrk: bodies from the files of BODIES (joined by commas), CONTENT_TYPE, UNIQUE=1 for a new id in every request; the path is the address's.
local bodies = {}
for name in string.gmatch(os.getenv("BODIES"), "[^,]+") do
  local file = io.open(name, "rb")
  bodies[#bodies + 1] = file:read("*a")
  file:close()
end
local unique = os.getenv("UNIQUE") == "1"
local seed = os.time() % 100000
local count = 0
local made = {}
wrk.method = "POST"
wrk.headers["Content-Type"] = os.getenv("CONTENT_TYPE")
function init(args)
  for index, body in ipairs(bodies) do
    wrk.headers["x-request-id"] = unique and "@@ID@@" or nil
    made[index] = wrk.format(nil, nil, nil, body)
  end
end
function request()
  count = count + 1
  local text = made[count % #bodies + 1]
  if unique then
    return (string.gsub(text, "@@ID@@", string.format("%d-%012d", seed, count), 1))
  end
  return text
end
